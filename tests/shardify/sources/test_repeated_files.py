"""Files that stand in several sources are taken once; parts of one download are one tree."""

import shutil
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest
from shardline_scenes import background, composite, depth, encoded, flat_mask, noise
from shardline_sources import files_of, inline, only, pack, run, shards, spread, zipped

from shardify.conversion.survey import BuildOptions, BuildPlan, survey
from shardify.errors import SourceError

__all__ = ["inline"]

pytestmark = pytest.mark.usefixtures("inline")


def plan_of(*sources: Path) -> BuildPlan:
    return survey(sources, BuildOptions(val=0.25))


def warnings_of(plan: BuildPlan) -> list[str]:
    found = plan.description().get("warnings", [])
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("given", ["zips", "folder", "unpacked beside", "unpacked here", "inside"])
def test_a_download_that_is_there_twice_is_published_once_and_said(
    tmp_path: Path, given: str
) -> None:
    files = files_of(12)
    run([pack(tmp_path / "alone.zip", files)], tmp_path / "one")
    folder = tmp_path / "content"
    first = pack(folder / "data.zip", files)
    sources = [folder]
    if given == "zips":
        sources = [first, Path(shutil.copy(first, folder / "data (1).zip"))]
    elif given == "folder":
        pack(folder / "data (1).zip", dict(reversed(files.items())), method=0)
    elif given == "unpacked beside":
        spread(folder / "data", files)
    elif given == "unpacked here":
        spread(folder, files)
    else:
        inner = {"data.zip": zipped(files), "data (1).zip": zipped(files)}
        first.unlink()
        sources = [pack(folder / "all.zip", inner, method=0)]
    report = run(sources, tmp_path / "two")
    assert shards(tmp_path / "two") == shards(tmp_path / "one")
    assert any("40 files stand in" in each for each in report.manifest.layout["warnings"])


def test_sources_that_overlap_give_each_sample_once(tmp_path: Path) -> None:
    one = pack(tmp_path / "monday.zip", files_of(8))
    two = pack(tmp_path / "tuesday.zip", files_of(8, first=4))
    plan = plan_of(one, two)
    assert int(plan.usable.sum()) == 12
    assert len(plan.layout.background_ids) == 4
    assert "tuesday.zip: 16 files stand in monday.zip too" in warnings_of(plan)[0]


def test_equal_paths_with_other_content_are_not_the_same_files(tmp_path: Path) -> None:
    composites = {f"{n}.jpg": composite(n, n % 4 + 1) for n in range(8)}
    empty = flat_mask(0)
    masks = {f"{n}.png": empty if n < 6 else flat_mask(200 + n) for n in range(8)}
    depths = {f"{n}.png": empty if n < 6 else depth(n) for n in range(8)}
    sources = [
        pack(tmp_path / "fg_bg.zip", composites),
        pack(tmp_path / "mask.zip", masks),
        pack(tmp_path / "depth.zip", depths),
    ]
    plan = plan_of(*sources)
    assert plan.layout.roles == ("fg_bg", "mask", "depth")
    assert int(plan.usable.sum()) == 8
    assert not any("stand in" in each for each in warnings_of(plan))


def test_empty_masks_of_two_scenes_are_two_files(tmp_path: Path) -> None:
    """Only the folders tell them apart, which each zip's files share."""
    sources = []
    for scene in (0, 1):
        files = {f"set/scene_{scene}/mask/{n:03d}.png": flat_mask(0) for n in range(4)}
        files |= {
            f"set/scene_{scene}/rgb/{n:03d}.jpg": composite(10 * scene + n, 1) for n in range(4)
        }
        files[f"set/scene_{scene}/mask/000.png"] = flat_mask(201 + scene)
        sources.append(pack(tmp_path / f"set-00{scene + 1}.zip", files))
    assert int(plan_of(*sources).usable.sum()) == 8


def parts(folder: Path, files: Mapping[str, bytes], form: str, count: int = 3) -> list[Path]:
    """Zips over which the files are dealt like cards."""
    names = sorted(files)
    return [
        pack(folder / form.format(place + 1), {name: files[name] for name in names[place::count]})
        for place in range(count)
    ]


FORMS = [
    "takeout-{:03}.zip", "my set-20240101T000000Z-{:03}.zip", "data.part{:02}.zip",
    "drive-download-20240101T000000Z-1-{:03}.zip",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("as_folder", [False, True])
def test_numbered_parts_of_one_download_are_one_tree(
    tmp_path: Path, form: str, as_folder: bool
) -> None:
    files = {
        f"root/{('train', 'val')[seed // 6]}/seq{seed // 3 % 2}/{role}/{seed % 3:04d}.png": data
        for seed in range(12)
        for role, data in (
            ("image", encoded(noise(seed), "PNG")), ("depth", depth(seed)), ("mask", flat_mask(255))
        )
    }  # fmt: skip
    whole = plan_of(pack(tmp_path / "whole.zip", files))
    zips = parts(tmp_path / "parts", files, form)
    plan = plan_of(*([tmp_path / "parts"] if as_folder else zips))
    assert plan.layout.keys == whole.layout.keys
    assert int(plan.usable.sum()) == 12
    assert plan.layout.description.get("splits") == whole.layout.description.get("splits")


def test_numbered_zips_with_equal_paths_are_not_one_tree(tmp_path: Path) -> None:
    sources = [
        pack(
            tmp_path / f"scans-00{part}.zip",
            {f"{role}/{n}.png": data for n in range(3) for role, data in (
                ("image", encoded(noise(9 * part + n), "PNG")), ("mask", flat_mask(255)),
            )},
        )
        for part in (1, 2)
    ]  # fmt: skip
    assert int(plan_of(*sources).usable.sum()) == 6


def test_names_in_composed_and_decomposed_form_belong_together(tmp_path: Path) -> None:
    words = ["Zoë", "Ångström", "Škoda", "façade", "Ñandú", "이미지"]
    form = unicodedata.normalize
    files = {form("NFD", f"images/{word}.jpg"): composite(n, 1) for n, word in enumerate(words)}
    masks = {form("NFC", f"masks/{word}.png"): flat_mask(255) for word in words}
    pack(tmp_path / "both.zip", files | masks)
    assert int(plan_of(tmp_path / "both.zip").usable.sum()) == 6
    spread(tmp_path / "tree", files | masks)
    report = run([tmp_path / "tree"], tmp_path / "out")
    assert sum(split.samples for split in report.manifest.splits.values()) == 6


def test_letters_in_a_folder_may_look_like_backslashes(tmp_path: Path) -> None:
    files = {f"{role}\\{n}.{kind}": data for n in range(3) for role, kind, data in (
        ("images", "jpg", composite(n, 1)), ("masks", "png", flat_mask(255)))}  # fmt: skip
    plan = plan_of(spread(tmp_path / "flat", files))
    assert int(plan.usable.sum()) == 3
    assert not plan.catalog.refused


def test_keys_of_names_with_dots_are_safe_and_unique(tmp_path: Path) -> None:
    files = {}
    for number, stem in enumerate(("a.b", "a.c", "v1.0.0", "v1.00", "x..c", "d.")):
        files |= {f"images/{stem}.jpg": composite(number, 1), f"masks/{stem}.png": flat_mask(255)}
    keys = plan_of(pack(tmp_path / "x.zip", files)).layout.keys
    assert len(set(keys)) == len(keys) == 6
    assert all(key.replace("_", "").replace("-", "").isalnum() for key in keys)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n"


@pytest.mark.parametrize("zip_it", [False, True])
def test_git_lfs_pointers_are_named_with_the_remedy(tmp_path: Path, zip_it: bool) -> None:
    files = {name: POINTER % (b"0123" * 16, len(data)) for name, data in files_of(4).items()}
    source = pack(tmp_path / "x.zip", files) if zip_it else spread(tmp_path / "clone", files)
    with pytest.raises(SourceError, match=r"16 of 16 files are Git LFS pointers.*git lfs pull"):
        plan_of(source)


def test_a_pointer_in_place_of_a_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(POINTER % (b"0123" * 16, 5_000_000))
    with pytest.raises(SourceError, match=r"x\.zip: a Git LFS pointer.*git lfs pull"):
        plan_of(tmp_path / "x.zip")


def archives(tmp_path: Path) -> dict[str, bytes]:
    found = {}
    spread(tmp_path / "in", only(files_of(2), "bg"))
    for name, kind in (("x.tar", "tar"), ("x.tar.gz", "gztar"), ("x.tgz.zip", "gztar")):
        made = shutil.make_archive(str(tmp_path / "made"), kind, tmp_path / "in")
        found[name] = Path(made).read_bytes()
    return found | {
        "x.7z": b"7z\xbc\xaf\x27\x1c\0\4" + bytes(99),
        "x.rar": b"Rar!\x1a\x07\x01\x00" + bytes(99),
        "x.tar.xz": b"\xfd7zXZ\0" + bytes(99),
        "x.jpg": background(1),
        "page.zip": b"\n<!DOCTYPE html><html>Too many users have downloaded this file</html>",
    }


@pytest.mark.parametrize("in_a_folder", [False, True])
def test_what_is_no_zip_is_named_for_what_it_is(tmp_path: Path, in_a_folder: bool) -> None:
    says = {
        "x.tar": r"a tar archive.*tar -xf`", "x.tar.gz": r"a tar\.gz.*tar -xzf`",
        "x.tgz.zip": r"a tar\.gz", "x.7z": r"a 7z archive.*7z x`", "x.rar": "a rar archive",
        "x.tar.xz": r"tar\.xz", "x.jpg": "a picture", "page.zip": "a web page",
    }  # fmt: skip
    for place, (name, data) in enumerate(archives(tmp_path).items()):
        folder = tmp_path / f"d{place}"
        source = spread(folder, {name: data})
        if in_a_folder and name == "x.jpg":
            continue
        with pytest.raises(SourceError, match=says[name]):
            plan_of(source if in_a_folder else source / name)
