"""Zips that other programs read, with and without zip64."""

import io
import zipfile

import pytest

from shardify.synth import zip_writer


def write(contents: dict[str, bytes], **limits: int) -> bytes:
    """Two sections, the entries by turns in the one and the other."""
    out = io.BytesIO()
    sections = [zip_writer.Section(out), zip_writer.Section(io.BytesIO())]
    for number, (name, content) in enumerate(contents.items()):
        sections[number % 2].add(name, zip_writer.compress_entry(content))
    assert zip_writer.write_directory(sections, **limits) == len(out.getvalue())
    return out.getvalue()


CONTENTS = {f"folder/näme {number}.txt": bytes([number]) * 50 * number for number in range(20)}


@pytest.mark.parametrize("limits", [{}, {"wide": 300}, {"many": 5}, {"wide": 1, "many": 1}])
def test_every_entry_comes_back(limits: dict[str, int]) -> None:
    with zipfile.ZipFile(io.BytesIO(write(CONTENTS, **limits))) as source:
        assert source.testzip() is None
        assert {name: source.read(name) for name in source.namelist()} == CONTENTS
        assert source.namelist() == [*list(CONTENTS)[::2], *list(CONTENTS)[1::2]]
        assert all(entry.compress_type == zipfile.ZIP_DEFLATED for entry in source.infolist())


def test_zip64_appears_only_where_a_limit_is_passed() -> None:
    assert b"PK\x06\x06" not in write(CONTENTS)
    assert b"PK\x06\x06" in write(CONTENTS, many=20)
    assert b"PK\x06\x06" not in write(CONTENTS, many=21)
    assert b"PK\x06\x06" in write(CONTENTS, wide=300)


def test_an_empty_zip_is_a_zip() -> None:
    with zipfile.ZipFile(io.BytesIO(write({}))) as source:
        assert source.namelist() == []
