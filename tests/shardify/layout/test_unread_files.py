"""Files of a role that cannot be read stop the build: no role vanishes."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shardline_sources import pack

from shardify.cli import main
from shardify.errors import LayoutError
from shardify.layout import detect, layout_file

SAMPLES, SIDE = 12, 16
Files = dict[str, bytes]


def encoded(plane: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(plane).save(file, kind)
    return file.getvalue()


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    return encoded(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def mask(number: int) -> bytes:
    plane = np.zeros((SIDE, SIDE), np.uint8)
    plane[3:9, 1 : 5 + number % 9] = 255
    return encoded(plane)


def depth(number: int) -> bytes:
    ramp = np.linspace(0, 250 - number, SIDE * SIDE)
    return encoded(ramp.astype(np.uint8).reshape(SIDE, SIDE))


def pictures_and_masks() -> Files:
    return {f"d/rgb/{n:04d}.png": picture(n) for n in range(SAMPLES)} | {
        f"d/mask/{n:04d}.png": mask(n) for n in range(SAMPLES)
    }


def detected(
    files: Files, refused: list[tuple[str, str]] | None = None, rules: str = ""
) -> detect.Layout:
    names = sorted(files)
    return detect.detect(
        names,
        where="x.zip",
        read=lambda index: files[names[index]],
        refused=refused or [],
        layout=layout_file.parse(rules, where="layout.toml") if rules else None,
    )


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("d/depth/{:04d}.mat", "depth"),
        ("d/disparities/{:04d}.dpt", "depth"),
        ("d/{:04d}_depth.h5", "depth"),
        ("other/depth/{:04d}.bin", "depth"),
        ("d/depth/{:04d}", "depth"),
        ("d/background/{:04d}.dng", "bg"),
        ("d/bg/{:04d}.jxl", "bg"),
    ],
)
def test_a_role_in_a_format_that_is_not_read_stops_the_build(name: str, role: str) -> None:
    files = pictures_and_masks() | {name.format(n): b"unknown" for n in range(SAMPLES)}
    with pytest.raises(LayoutError) as caught:
        detected(files)
    said = str(caught.value)
    assert f"{SAMPLES} files named as {role} cannot be read" in said
    assert name.format(0) in said
    assert "convert them to" in said
    extension = name.rpartition(".")[2] if "." in name else "without extension"
    assert extension in said


def test_masks_in_a_format_that_is_not_read_stop_a_build_with_depth() -> None:
    files = {f"d/rgb/{n}.png": picture(n) for n in range(SAMPLES)}
    files |= {f"d/depth/{n}.png": depth(n) for n in range(SAMPLES)}
    with pytest.raises(LayoutError, match=r"12 files named as mask cannot be read \(12 \.dcm"):
        detected(files | {f"d/masks/{n}.dcm": b"DICM" for n in range(SAMPLES)})


def test_pictures_in_a_format_that_is_not_read_are_what_the_refusal_names() -> None:
    files = {f"d/masks/{n}.png": mask(n) for n in range(SAMPLES)}
    files |= {f"d/images/{n}.cr2": b"raw" for n in range(SAMPLES)}
    with pytest.raises(LayoutError, match=r"12 files named as fg_bg cannot be read \(12 \.cr2"):
        detected(files)
    # A few that can be read do not hide the others.
    files["d/images/0.png"] = picture(0)
    with pytest.raises(LayoutError, match="11 files named as fg_bg cannot be read"):
        detected(files)


def test_entries_that_the_directory_refuses_stop_the_build() -> None:
    refused = [(f"d/depth/{n:04d}.png", "a link") for n in range(SAMPLES)]
    with pytest.raises(LayoutError, match=r"12 files named as depth cannot be read \(12 a link"):
        detected(pictures_and_masks(), refused)


def test_some_backgrounds_in_another_format_stop_the_build() -> None:
    files = {f"d/fg_bg/bg_{n % 3}_{n}.png": picture(n) for n in range(SAMPLES)}
    files |= {f"d/mask/bg_{n % 3}_{n}.png": mask(n) for n in range(SAMPLES)}
    files |= {"d/bg/bg_0.png": picture(90), "d/bg/bg_1.png": picture(91), "d/bg/bg_2.heics": b"x"}
    with pytest.raises(LayoutError, match="1 files named as bg cannot be read"):
        detected(files)


def test_copies_and_texts_beside_a_whole_role_stop_nothing() -> None:
    files = pictures_and_masks()
    files |= {f"d/depth/{n:04d}.png": depth(n) for n in range(SAMPLES)}
    files |= {f"d/depth/{n:04d}.mat": b"copy" for n in range(SAMPLES)}
    files |= {f"d/masks_text/{n:04d}.json": b"{}" for n in range(SAMPLES)}
    found = detected(files)
    assert found.roles == ("fg_bg", "mask", "depth")
    assert len(found.keys) == SAMPLES
    ignored = found.description["ignored"]
    assert ignored == {".json": SAMPLES, ".mat": SAMPLES}


def test_a_layout_file_may_go_without_the_role() -> None:
    files = pictures_and_masks() | {f"d/depth/{n}.mat": b"unknown" for n in range(SAMPLES)}
    found = detected(
        files, rules="[roles]\nfg_bg = ['d/rgb/(?P<n>\\d+)\\.png']\nmask = ['d/mask/(?P<n>\\d+).*']"
    )
    assert found.roles == ("fg_bg", "mask")


def test_label_files_that_are_not_used_are_named_in_a_warning() -> None:
    files = {f"leftImg8bit/{n:04d}_leftImg8bit.png": picture(n) for n in range(SAMPLES)}
    files |= {f"disparity/{n:04d}_disparity.png": depth(n) for n in range(SAMPLES)}
    files |= {f"gtFine/{n:04d}_gtFine_labelIds.png": mask(n) for n in range(SAMPLES)}
    found = detected(files)
    assert found.roles == ("fg_bg", "depth")
    warnings = found.description["warnings"]
    assert isinstance(warnings, list)
    assert "no sample has a mask: 12 files" in warnings[0]
    assert "gtFine/*.png" in warnings[0]


def test_surplus_masks_and_depths_are_unused_files_and_no_bad_samples() -> None:
    files = pictures_and_masks() | {f"d/depth/{n:04d}.png": depth(n) for n in range(SAMPLES)}
    files["d/mask/0777.png"], files["d/depth/0778.png"] = mask(1), depth(1)
    del files["d/mask/0005.png"]
    found = detected(files)
    assert len(found.keys) == SAMPLES - 1
    assert [(each.key, each.reason) for each in found.rejected] == [("0005", "incomplete: no mask")]
    assert [(each.role, each.member) for each in found.unused] == [
        ("mask", "d/mask/0777.png"), ("depth", "d/depth/0778.png"),
    ]  # fmt: skip
    warnings = found.description["warnings"]
    assert isinstance(warnings, list)
    assert "1 depth files and 1 mask files belong to no composite" in warnings[0]


def run(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_last_lines_of_a_build_name_every_role_and_what_was_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pictures_and_masks()
    files |= {f"d/edges/{n:04d}.png": mask(n) for n in range(SAMPLES)}
    files |= {"d/mask/0777.png": mask(1), "d/classes.txt": b"cat"}
    source = pack(tmp_path / "x.zip", files)
    code, out, err = run("build", source, tmp_path / "out", "--workers", 1, capsys=capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[-4:] == [
        "rejected     1: unused: belongs to no composite",
        "warning      1 mask files belong to no composite (such as d/mask/0777.png): not used; "
        "they are listed in rejected.jsonl",
        "roles        bg none, fg_bg 12, mask 12, depth none",
        "ignored      12 images without a role, 1 .txt (12 edges/*.png)",
    ]
    listed = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "d/mask/0777.png" in listed
    assert run("verify", tmp_path / "out", capsys=capsys)[0] == 0


def test_a_refusal_for_want_of_a_role_prints_a_layout_file_to_begin_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def classes(n: int) -> bytes:
        plane = np.zeros((SIDE, SIDE), np.uint8)
        plane[4:8], plane[8:12] = 3 + n % 5, 15
        return encoded(plane)

    files = {f"pictures/{n}.png": picture(n) for n in range(SAMPLES)}
    files |= {f"areas/{n}.png": classes(n) for n in range(SAMPLES)}
    source = pack(tmp_path / "x.zip", files)
    code, out, err = run("inspect", source, capsys=capsys)
    assert code == 1
    assert err.startswith("Error: x.zip: no masks")
    assert "areas/*.png: 12 files, a few values" in err
    assert err.count("\n") == 1
    text = out.replace("# mask = []  # none was found", "mask = ['.*areas/(?P<name>[^/]+)\\.png']")
    assert layout_file.parse(text, where="layout.toml").patterns.keys() == {"fg_bg", "mask"}
    assert run("inspect", source, "--json", capsys=capsys)[1] == ""


def test_two_masks_of_one_picture_are_named_with_both_folders() -> None:
    files = {f"d/rgb/{n:04d}.png": picture(n) for n in range(SAMPLES)}
    for side in ("left", "right"):
        files |= {f"d/masks_{side}/mask/{n:04d}.png": mask(n) for n in range(SAMPLES)}
    with pytest.raises(LayoutError) as caught:
        detected(files)
    said = str(caught.value)
    assert "2 files claim to be the mask" in said
    assert "masks_left" in said
    assert "masks_right" in said
    assert "no image has companions" not in said
