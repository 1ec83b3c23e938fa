"""An index states extension, offset, size and name of each member, in DALI's format."""

import pytest

from shardify.dataset.index import Member, index_header, index_line, parse_index
from shardify.errors import VerifyError

SAMPLES = [
    [Member("fg_bg.jpg", 512, 5124, "k1.fg_bg.jpg"), Member("bg.cls", 6656, 5, "k1.bg.cls")],
    [Member("fg_bg.png", 7680, 1, "k2.fg_bg.png"), Member("bg.cls", 8704, 5, "k2.bg.cls")],
]
TEXT = (
    "v1.2 2\n"
    "fg_bg.jpg 512 5124 k1.fg_bg.jpg bg.cls 6656 5 k1.bg.cls\n"
    "fg_bg.png 7680 1 k2.fg_bg.png bg.cls 8704 5 k2.bg.cls\n"
)


def test_an_index_is_a_count_and_a_line_a_sample() -> None:
    assert index_header(2) + "".join(f"{index_line(each)}\n" for each in SAMPLES) == TEXT


def test_an_index_reads_back_as_it_was() -> None:
    index = parse_index(TEXT.encode())
    assert [index.members(sample) for sample in range(2)] == SAMPLES
    assert index.roles.tolist() == [[b"fg_bg", b"bg"]] * 2


def test_an_index_of_no_samples_has_none() -> None:
    assert len(parse_index(b"v1.2 0\n").names) == 0


def test_a_name_outside_ascii_reads_back_as_it_was() -> None:
    line = [Member("fg_bg.jpg", 512, 3, "ä.fg_bg.jpg")]
    index = parse_index(f"{index_header(1)}{index_line(line)}\n".encode())
    assert index.members(0) == line


@pytest.mark.parametrize(
    "text",
    [
        "", "v1.1 2\n", TEXT[:-40], TEXT + "x", TEXT.replace("v1.2 2", "v1.2 3"),
        TEXT.replace(" 512 ", " here "), TEXT.replace(" 512 ", " "), "\x00" * 99,
        TEXT.replace(" 512 ", f" {10**30} "), "v1.2 1\n\n",
        "v1.2 1\nfg_bg.jpg 512 1 k\udcff.fg_bg.jpg\n",
    ],
)  # fmt: skip
def test_what_is_no_whole_index_is_refused(text: str) -> None:
    with pytest.raises(VerifyError):
        parse_index(text.encode(errors="surrogateescape"))
