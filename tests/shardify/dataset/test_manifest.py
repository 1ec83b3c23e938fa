"""The manifest survives the trip to disk, and a bad one is named in one line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from shardify.dataset.manifest import (
    NAME,
    Background,
    Manifest,
    Rejected,
    Role,
    Shard,
    Source,
    Split,
    Stats,
    StoredResolution,
)
from shardify.errors import ManifestError, ShardifyError


def example() -> Manifest:
    """A small manifest with every field in use."""
    shard = Shard(
        name="train-00000.tar", index="train-00000.idx", samples=3, bytes=10240, sha256="ab"
    )
    return Manifest(
        created_by="shardline test",
        source=[Source(name="x.zip", bytes=99, entries=13, digest="cd")],
        options={"val": 0.05, "seed": 0, "res": [64]},
        layout={"rule": "number in the name"},
        roles={
            "fg_bg": Role(extensions=["jpg", "png"], channels=3, sizes=[[250, 250, 3]]),
            "mask": Role(extensions=["jpg"], channels=1, sizes=[[250, 250, 3]], threshold=150),
        },
        backgrounds=[
            Background(id="park1", index=0, member="park1.jpg", width=9, height=7, sha256="ef")
        ],
        splits={"train": Split(samples=3, shards=[shard]), "val": Split(samples=0, shards=[])},
        rejected=Rejected(count=1, by_reason={"bad CRC": 1}),
        stats={"fg_bg": Stats(mean=[0.1, 0.2, 0.3], std=[1, 0, 0.5], samples=3)},
        resolutions=[StoredResolution(res=64, path="res-064")],
        files={"backgrounds.tar": "12"},
        costs={"depth": {"rmse": 0.01}},
    )


def test_a_manifest_read_back_equals_the_one_written(tmp_path: Path) -> None:
    manifest = example()
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert Manifest.load(tmp_path / NAME) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_the_same_manifest_gives_the_same_bytes() -> None:
    assert example().to_json() == example().to_json()
    assert example().to_json().endswith("}\n")


def test_fields_of_a_newer_program_are_ignored() -> None:
    document = json.loads(example().to_json()) | {"colour_of_the_sky": "blue"}
    assert Manifest.from_json(document) == example()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"version": 2}', '{"version": 1}', "\x00", "[" * 100_000],
    ids=["empty", "cut", "list", "no-version", "version-2", "no-fields", "nul", "nested"],
)
def test_a_file_that_is_no_manifest_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ManifestError) as error:
        Manifest.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_manifest_names_the_folder_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ShardifyError, match=r"no manifest\.json.*build it first") as error:
        Manifest.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(ManifestError, match=r"cannot be read|no manifest"):
        Manifest.load(tmp_path / "nowhere")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="cannot be read"):
        Manifest.load(tmp_path)


def test_a_zip_instead_of_a_data_set_names_the_command_that_builds_one(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(ManifestError, match=r"shardify build .*data\.zip OUT"):
        Manifest.load(tmp_path / "data.zip")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("created_by", 3),
        ("source", {}),
        ("source", [{"name": "x"}]),
        ("options", []),
        ("roles", {"fg_bg": {"extensions": "jpg", "channels": 3, "sizes": []}}),
        ("roles", {"fg_bg": {"extensions": ["jpg"], "channels": 3, "sizes": [[1, 2]]}}),
        ("roles", {"fg_bg": {"extensions": ["jpg"], "channels": True, "sizes": []}}),
        ("splits", {"train": {"samples": -1, "shards": []}}),
        ("splits", {"train": {"samples": 1, "shards": []}}),
        ("stats", {"mask": {"mean": ["a"], "std": [0], "samples": 1}}),
        ("backgrounds", None),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field: str, value: Any) -> None:
    document = json.loads(example().to_json()) | {field: value}
    with pytest.raises(ManifestError, match=field.rstrip("s")):
        Manifest.from_json(document)


def test_a_background_out_of_place_is_refused() -> None:
    document = json.loads(example().to_json())
    document["backgrounds"][0]["index"] = 1
    with pytest.raises(ManifestError, match=r"park1.*index 1 at place 0"):
        Manifest.from_json(document)


def test_every_field_of_the_schema_can_be_read_and_is_needed_or_has_a_default() -> None:
    document = json.loads(example().to_json())
    for spec in dataclasses.fields(Manifest):
        less = {name: value for name, value in document.items() if name != spec.name}
        needed = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if needed or spec.name == "version":
            with pytest.raises(ManifestError, match=spec.name):
                Manifest.from_json(less)
        else:
            Manifest.from_json(less)
