"""No sample is published twice, and no picture stands in both splits."""

import hashlib
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shardline_scenes import composite, flat_mask
from shardline_sources import inline, pack, run, spread

from shardify.conversion.repeated_samples import join_groups
from shardify.conversion.survey import BuildOptions, survey

__all__ = ["inline"]

pytestmark = pytest.mark.usefixtures("inline")


def pairs(folder: str, numbers: range, name: str = "{:03}") -> dict[str, bytes]:
    files = {}
    for n in numbers:
        files[f"{folder}images/{name.format(n)}.jpg"] = composite(n, 1)
        files[f"{folder}masks/{name.format(n)}.png"] = flat_mask(150 + n)
    return files


def pictures(out: Path) -> dict[str, list[str]]:
    """Split -> digests of its composites."""
    found: dict[str, list[str]] = {"train": [], "val": []}
    for path in sorted(out.glob("*-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if ".fg_bg." in member.name:
                    file = tar.extractfile(member)
                    assert file is not None
                    digest = hashlib.sha256(file.read()).hexdigest()
                    found[path.name.partition("-")[0]].append(digest)
    return found


@pytest.mark.parametrize("zip_it", [True, False])
def test_a_copy_of_a_folder_inside_one_source_is_published_once(
    tmp_path: Path, zip_it: bool
) -> None:
    files = pairs("data/", range(20)) | pairs("data copy/", range(20))
    source = pack(tmp_path / "x.zip", files) if zip_it else spread(tmp_path / "x", files)
    report = run([source], tmp_path / "out")
    found = pictures(tmp_path / "out")
    assert sorted(map(len, found.values())) == [5, 15]
    assert not set(found["train"]) & set(found["val"])
    assert any("20 samples stand twice" in each for each in report.manifest.layout["warnings"])


@pytest.mark.parametrize("zip_it", [True, False])
def test_copies_under_other_names_are_in_one_split_and_that_is_said(
    tmp_path: Path, zip_it: bool
) -> None:
    files = pairs("", range(40)) | pairs("", range(40), name="copy{:03}")
    source = pack(tmp_path / "x.zip", files) if zip_it else spread(tmp_path / "x", files)
    for seed in range(3):
        out = tmp_path / f"out{seed}"
        report = run([source], out, seed=seed)
        found = pictures(out)
        assert len(found["train"]) + len(found["val"]) == 80
        assert found["val"] and not set(found["train"]) & set(found["val"])
        assert any("80 samples have a picture" in w for w in report.manifest.layout["warnings"])


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("zip_one", [False, True])
def test_renamed_copies_whose_masks_differ_in_size_are_in_one_split(
    tmp_path: Path, large: bool, zip_one: bool
) -> None:
    # One size for all pictures, as uncompressed ones have.
    size = 100_000 if large else 10_000
    files = pairs("", range(24))
    files = {
        name: data + bytes(size - len(data)) if name.endswith("jpg") else data
        for name, data in files.items()
    }
    copies = {name.replace("/0", "/copy0"): data for name, data in files.items()}
    for number, name in enumerate(sorted(each for each in copies if each.endswith("png"))):
        copies[name] = flat_mask(3 * number)
    sources = [spread(tmp_path / "one", files), spread(tmp_path / "one", copies)][:1]
    if zip_one:
        sources = [spread(tmp_path / "two", files), pack(tmp_path / "copies.zip", copies)]
    for seed in range(3):
        out = tmp_path / f"out{seed}"
        report = run(sources, out, seed=seed)
        found = pictures(out)
        assert len(found["train"]) + len(found["val"]) == 48
        assert found["val"] and not set(found["train"]) & set(found["val"])
        assert any("48 samples have a picture" in w for w in report.manifest.layout["warnings"])


def test_pictures_of_the_given_validation_split_are_left_out_of_train(tmp_path: Path) -> None:
    files = pairs("train/", range(20)) | pairs("val/", range(18, 25))
    for n in (18, 19):  # Other masks, so these are other samples.
        files[f"val/masks/{n:03}.png"] = flat_mask(200 + n)
    report = run([pack(tmp_path / "x.zip", files)], tmp_path / "out", max_bad=0)
    assert {name: each.samples for name, each in report.manifest.splits.items()} == {
        "train": 18, "val": 7,
    }  # fmt: skip
    assert any("2 samples are left out of train" in w for w in report.manifest.layout["warnings"])


def test_one_picture_with_two_masks_is_said(tmp_path: Path) -> None:
    files = pairs("data/", range(20)) | pairs("data copy/", range(20))
    files["data/masks/003.png"] = flat_mask(200)
    plan = survey([pack(tmp_path / "x.zip", files)], BuildOptions())
    assert any("1 such pictures have different masks" in each for each in plan.warnings)


def test_equal_masks_repeat_no_sample(tmp_path: Path) -> None:
    files = pairs("", range(12))
    files |= {name: flat_mask(255) for name in files if name.startswith("masks/")}
    plan = survey([pack(tmp_path / "x.zip", files)], BuildOptions())
    assert plan.picture is None and not plan.warnings and plan.usable.all()


@pytest.mark.parametrize("seed", range(20))
def test_joined_groups_part_no_group_and_no_picture(seed: int) -> None:
    draw = np.random.Generator(np.random.Philox(key=seed))
    groups, picture = draw.integers(0, 12, 30), draw.integers(0, 25, 30)
    joined = join_groups(groups, picture)
    assert joined is not None
    for one, other in itertools.combinations(range(30), 2):
        if groups[one] == groups[other] or picture[one] == picture[other]:
            assert joined[one] == joined[other]
    apart = join_groups(groups, np.arange(30))
    assert apart is not None and np.array_equal(apart, groups)
