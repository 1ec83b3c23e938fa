"""A larger stand-in: the same pictures under new numbers, in a zip that everything reads."""

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions, survey
from shardify.enlarge import enlarge, main
from shardify.synth.generate import generate


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("enlarge") / "s12.zip"
    generate(path, samples=12, backgrounds=3, size=32, seed=0, workers=1)
    return path


def contents(path: Path) -> dict[str, bytes]:
    """Every entry, its CRC checked by zipfile."""
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        assert len(set(names)) == len(names)
        return {name: file.read(name) for name in names}


def numbers(names: list[str], folder: str) -> list[int]:
    found = [name for name in names if name.startswith(folder)]
    return sorted(int(name.rpartition("_")[2].partition(".")[0]) for name in found)


def test_every_sample_is_there_as_often_as_asked_under_numbers_of_its_own(
    source: Path, tmp_path: Path
) -> None:
    assert enlarge(source, tmp_path / "big.zip", times=3) == 36
    before, after = contents(source), contents(tmp_path / "big.zip")
    assert len(after) == 3 + 3 * 36
    for folder in ("data_all/fg_bg/", "data_all/fg_bg_mask/", "data_all/fg_bg_depth/"):
        assert numbers(list(after), folder) == list(range(36))
    assert Counter(after.values()) == Counter(
        {data: 1 if "/bg/" in name else 3 for name, data in before.items()}
    )


def test_the_larger_zip_builds_whole_with_each_sample_on_its_background(
    source: Path, tmp_path: Path
) -> None:
    enlarge(source, tmp_path / "big.zip", times=3)
    small = survey([source], BuildOptions())
    big = survey([tmp_path / "big.zip"], BuildOptions())
    assert not big.rejected
    assert big.layout.background_ids == small.layout.background_ids
    assert big.layout.background.tolist() == [
        number for number in small.layout.background.tolist() for _ in range(3)
    ]
    report = build([tmp_path / "big.zip"], tmp_path / "out", BuildOptions(workers=1))
    assert sum(split.samples for split in report.manifest.splits.values()) == 36


def test_the_published_zips_hold_the_same_samples(source: Path, tmp_path: Path) -> None:
    enlarge(source, tmp_path / "big.zip", times=3)
    assert enlarge(source, tmp_path / "new", times=3, released=True) == 36
    zips = {path.name: contents(path) for path in (tmp_path / "new").iterdir()}
    assert sorted(zips) == [
        "bg.zip", "dataset_fg_bg_Mask_final", *(f"depth_{n}.zip" for n in range(1, 6)),
        "fg_bg_correct",
    ]  # fmt: skip
    depths = [len(found) for name, found in zips.items() if name.startswith("depth")]
    assert sum(depths) == 36
    assert max(depths) - min(depths) <= 3
    everything = [data for found in zips.values() for data in found.values()]
    assert Counter(everything) == Counter(contents(tmp_path / "big.zip").values())
    found = survey([tmp_path / "new"], BuildOptions())
    assert int(found.usable.sum()) == 36
    assert found.layout.roles == ("bg", "fg_bg", "mask", "depth")


def test_what_cannot_be_enlarged_is_refused_in_a_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("images/1.jpg", b"")
    for given, out, said in (
        (other, tmp_path / "big.zip", "other.zip: images/1.jpg: expected a zip as"),
        (source, other, "File exists"),
        (tmp_path / "missing.zip", tmp_path / "big.zip", "No such file"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(given), str(out), "--times", "2"])
        assert ended.value.code == 1
        message = capsys.readouterr().err
        assert message.startswith("Error: ")
        assert said in message
    with pytest.raises(SystemExit) as ended:
        main([str(source), str(tmp_path / "big.zip"), "--times", "0"])
    assert ended.value.code == 2
