"""Every kind of damage to a finished data set is found, and the file at fault is named."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shardify.cli import main
from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.dataset.manifest import Manifest, is_altered
from shardify.dataset.verify import verify
from shardify.errors import ManifestError
from shardify.synth.generate import generate


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    generate(folder / "x.zip", samples=40, backgrounds=4, size=32, seed=0)
    build([folder / "x.zip"], folder / "out", BuildOptions(val=0.25, shard_samples=15, workers=1))
    return folder / "out"


@pytest.fixture
def out(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "out")
    return tmp_path / "out"


def flip(name: str, place: int) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        data = bytearray((out / name).read_bytes())
        data[place] ^= 1
        (out / name).write_bytes(data)

    return change


def cut(name: str) -> Callable[[Path], None]:
    return lambda out: (out / name).write_bytes((out / name).read_bytes()[:-512])


def remove(name: str) -> Callable[[Path], None]:
    return lambda out: (out / name).unlink()


def swap(name: str, other: str) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        data = (out / name).read_bytes()
        (out / name).write_bytes((out / other).read_bytes())
        (out / other).write_bytes(data)

    return change


def add(name: str) -> Callable[[Path], None]:
    return lambda out: (out / name).write_bytes(b"x")


def restate(out: Path, old: str, new: str) -> None:
    """Save the manifest with another digest of a file, as a build would have written it."""
    text = (out / "manifest.json").read_text()
    Manifest.from_json(json.loads(text.replace(old, new))).save(out)


def test_a_sound_data_set_has_no_problems(out: Path) -> None:
    report = verify(out)
    assert report.problems == []
    assert report.samples == 40
    assert report.files == 2 * 3 + 2
    assert (
        report.bytes
        == sum(path.stat().st_size for path in out.iterdir())
        - (out / "manifest.json").stat().st_size
    )


def test_every_picture_can_be_decoded(out: Path) -> None:
    report = verify(out, deep=True, workers=2)
    assert report.problems == []
    assert report.decoded == 3 * 40


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (flip("train-00000.tar", 0), ["train-00000.tar"]),
        (flip("train-00001.tar", -1), ["train-00001.tar"]),
        (flip("val-00000.idx", 9), ["val-00000.idx"]),
        (flip("backgrounds.tar", 5000), ["backgrounds.tar"]),
        (cut("train-00000.tar"), ["train-00000.tar"]),
        (cut("train-00000.idx"), ["train-00000.idx"]),
        (remove("val-00000.tar"), ["val-00000.tar"]),
        (remove("train-00001.idx"), ["train-00001.idx"]),
        (remove("rejected.jsonl"), ["rejected.jsonl"]),
        (swap("train-00000.tar", "train-00001.tar"), ["train-00000.tar", "train-00001.tar"]),
        (swap("train-00000.idx", "train-00001.idx"), ["train-00000.idx", "train-00001.idx"]),
        (add("train-00002.tar"), ["train-00002.tar"]),
        (add("train-00000.tar.tmp"), ["train-00000.tar.tmp"]),
    ],
    ids=lambda value: None if callable(value) else "+".join(value),
)
def test_the_file_at_fault_is_named(
    out: Path, change: Callable[[Path], None], names: list[str]
) -> None:
    change(out)
    assert sorted(problem.partition(":")[0] for problem in verify(out).problems) == names


def test_an_index_that_fits_its_digest_but_not_its_tar_is_named(out: Path) -> None:
    index = out / "train-00000.idx"
    text = index.read_text().replace(" 512 ", " 513 ", 1)
    old = hashlib.sha256(index.read_bytes()).hexdigest()
    index.write_text(text)
    restate(out, old, hashlib.sha256(text.encode()).hexdigest())
    (problem,) = verify(out).problems
    assert problem.startswith("train-00000.idx:")
    assert "is not where it says" in problem


def test_pixels_that_do_not_decode_are_named(out: Path) -> None:
    path = out / "val-00000.tar"
    data = bytearray(path.read_bytes())
    old = hashlib.sha256(data).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        info = next(info for info in tar if info.name.endswith("depth.png"))
    data[info.offset_data + 45] ^= 0xFF
    path.write_bytes(data)
    restate(out, old, hashlib.sha256(data).hexdigest())
    assert verify(out).problems == []
    (problem,) = verify(out, deep=True, workers=1).problems
    assert info.name in problem


def test_files_that_were_exchanged_are_told_by_what_they_are(out: Path) -> None:
    for kind in ("tar", "idx"):
        swap(f"train-00000.{kind}", f"train-00001.{kind}")(out)
    assert verify(out).problems == [
        "train-00000.tar: its bytes are those of train-00001.tar",
        "train-00000.idx: its bytes are those of train-00001.idx",
        "train-00001.tar: its bytes are those of train-00000.tar",
        "train-00001.idx: its bytes are those of train-00000.idx",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r'"samples": 30', '"samples": 30,\n "colour": 1'),
        (r'"threshold": 150', '"threshold": 158'),
        (r'"codec": "keep"', '"codec": "jeep"'),
        (r'"seed": 0', '"seed": 1'),
        (r'("mean": \[\s*0\.)(\d)', r"\g<1>9\g<2>"),
        (r'("sha256": "\w{9})[0-9]', r"\g<1>a"),
        (r'"sha256"(: "\w+"\s*\}\s*)$', r'"sha257"\1'),
    ],
)
def test_a_change_that_leaves_the_manifest_readable_is_named(
    out: Path, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (out / "manifest.json").read_text()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    (out / "manifest.json").write_text(changed)
    Manifest.load(out)  # What was edited on purpose can be trained with.
    assert "manifest.json: differs from what was built (damaged, or edited since)" in (
        verify(out).problems
    )
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(out)])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {out}/manifest.json: differs from what was built")
    assert error.endswith("; build the data set again\n")


def test_every_flipped_bit_of_a_manifest_is_found(out: Path) -> None:
    sound = (out / "manifest.json").read_bytes()
    meant = json.loads(sound)
    for place in range(len(sound)):
        data = bytearray(sound)
        data[place] ^= 1 << place % 8
        try:
            document = json.loads(data)
        except ValueError:
            continue
        # 1e-05 and 1E-05 are one number.
        assert is_altered(document) or document == meant, (place, data[place - 20 : place + 20])


def test_a_manifest_of_an_older_program_has_no_digest_and_is_sound(out: Path) -> None:
    document = json.loads((out / "manifest.json").read_text())
    del document["sha256"]
    (out / "manifest.json").write_text(json.dumps(document))
    assert verify(out).problems == []


def test_a_folder_without_a_manifest_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        verify(tmp_path)
