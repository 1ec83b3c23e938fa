"""A source of one sample, or of one group, is built without a validation split, with a warning."""

import json
from pathlib import Path

import pytest
from shardline_sources import files_of, inline, only, pack, run, spread

from shardify.cli import main
from shardify.dataset.manifest import Manifest
from shardify.dataset.report import page
from shardify.dataset.verify import verify
from shardify.errors import PlanError

pytestmark = pytest.mark.usefixtures("inline")

__all__ = ["inline"]

ONE = "no validation split: there is only 1 sample; add more samples"
GROUP = "no validation split: all {} samples have the same {}; pass --group-by none to split them"
ROLES = ("fg_bg", "fg_bg_mask", "fg_bg_depth")


BACK = GROUP.format(9, "background")
FORE = GROUP.format(6, "foreground")


def one_foreground() -> dict[str, bytes]:
    files = files_of(18, 6)
    return only(files, "bg") | {name: data for name, data in files.items() if "fg_001" in name}


CASES = {
    "one sample": (files_of(1, 1), {}, ONE),
    "one sample of four backgrounds": (files_of(1, 4), {}, ONE),
    "one sample without backgrounds": (only(files_of(1, 1), *ROLES), {}, ONE),
    "one sample, each for itself": (files_of(1, 1), {"group_by": "none"}, ONE),
    "one background": (files_of(9, 1), {}, BACK),
    "one background, by wish": (files_of(9, 1), {"group_by": "bg"}, BACK),
    "one foreground": (one_foreground(), {"group_by": "fg"}, FORE),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_has_one_group_is_built_with_a_warning_wherever_one_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    files, options, says = CASES[case]
    source, out = pack(tmp_path / "x.zip", files), tmp_path / "out"
    words = [word for key, text in options.items() for word in ("--" + key.replace("_", "-"), text)]
    main(["inspect", str(source), *words])
    assert capsys.readouterr().out.count(f"# warning      {says}") == 1
    main(["inspect", str(source), "--json", *words])
    assert json.loads(capsys.readouterr().out)["layout"]["warnings"][0].startswith(says)
    main(["build", str(source), str(out), "--workers", "1", *words])
    assert capsys.readouterr().out.count(f"\nwarning      {says}") == 1
    main(["build", str(source), str(tmp_path / "again"), "--json", "--workers", "1", *words])
    (told,) = json.loads(capsys.readouterr().out)["warnings"]
    assert told.startswith(says)
    manifest = Manifest.load(out)
    assert manifest.layout["warnings"] == [told]
    count = sum("/fg_" in name and "mask" not in name and "depth" not in name for name in files)
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "train": count, "val": 0,
    }  # fmt: skip
    assert not verify(out).problems
    assert told in page(out)
    main(["stats", str(out)])
    assert f"{count} train, 0 val" in capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_who_asks_for_no_validation_is_not_warned(tmp_path: Path, case: str) -> None:
    files, options, _ = CASES[case]
    report = run([pack(tmp_path / "x.zip", files)], tmp_path / "out", **{**options, "val": 0})
    assert not report.to_json()["warnings"]
    assert report.manifest.splits["train"].samples and not report.manifest.splits["val"].samples


@pytest.mark.parametrize("count", [2, 3])
def test_two_or_three_samples_on_their_own_backgrounds_are_divided(
    tmp_path: Path, count: int
) -> None:
    report = run([pack(tmp_path / "x.zip", files_of(count, count))], tmp_path / "out")
    found = report.manifest
    assert (found.splits["train"].samples, found.splits["val"].samples) == (count - 1, 1)
    assert found.layout["background"]["agrees"] == 1.0  # type: ignore[index]
    assert not report.to_json()["warnings"]


def test_the_warning_also_comes_when_the_build_leaves_one_background(tmp_path: Path) -> None:
    files = files_of(12, 2) | {"bg/park2.jpg": b"no picture"}
    report = run([pack(tmp_path / "x.zip", files)], tmp_path / "out", max_bad=0.5)
    assert report.manifest.splits["train"].samples == 6
    (told,) = report.to_json()["warnings"]
    assert told.startswith(GROUP.format(6, "background"))
    assert report.manifest.layout["warnings"] == [told]


def test_the_warning_also_comes_when_all_that_was_held_back_is_left_out(tmp_path: Path) -> None:
    files = files_of(4, 4)
    first = run([pack(tmp_path / "x.zip", files)], tmp_path / "first", val=0.1).manifest
    (held,) = [number for number, uses in enumerate(first.splits["val"].backgrounds) if uses]
    (mask,) = [name for name in files if f"mask_fg_{held % 3:03d}_bg_{held + 1:03d}" in name]
    damaged = [pack(tmp_path / "y.zip", files | {mask: b"no picture"})]
    report = run(damaged, tmp_path / "out", val=0.1, max_bad=0.3)
    assert report.manifest.splits["val"].samples == 0
    (told,) = report.to_json()["warnings"]
    assert "all 1 samples chosen for it were rejected; use another --seed" in told


def test_given_splits_on_one_background_are_kept_without_a_warning(tmp_path: Path) -> None:
    files = {
        name if name.startswith("bg/") else f"{'val' if '00000' in name else 'train'}/{name}": data
        for name, data in files_of(12, 1).items()
    }
    report = run([spread(tmp_path / "x", files)], tmp_path / "out")
    assert report.manifest.splits["val"].samples == 10
    assert not report.to_json()["warnings"]


def test_a_group_that_names_do_not_tell_is_still_refused(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", only(files_of(1, 1), *ROLES))
    with pytest.raises(PlanError, match=r"^x\.zip: no backgrounds are known to split by"):
        run([source], tmp_path / "out", group_by="bg")
