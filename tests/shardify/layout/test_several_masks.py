"""Several masks of one picture are united, or the picture is left out: never half an object."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shardline_sources import pack

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.layout import detect, layout_file, layout_file_writer
from shardify.storage.paths import as_path

SIDE, PICTURES = 20, 12
Files = dict[str, bytes]


def encoded(plane: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(plane).save(file, "PNG")
    return file.getvalue()


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    return encoded(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def part(number: int, place: int) -> np.ndarray:
    """The ``place``-th of the objects of a picture."""
    plane = np.zeros((SIDE, SIDE), np.uint8)
    plane[2 + 5 * place : 5 + 5 * place, 1 : 4 + number % 9] = 255
    return plane


def masks(number: int, count: int, name: Callable[[int], str]) -> Files:
    return {name(place): encoded(part(number, place)) for place in range(count)}


def hashed(text: str, digits: int = 64) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def several(number: int) -> int:
    return 1 + number % 3


def mask_and_mask_1() -> Files:
    files = {}
    for n in range(PICTURES):
        stem = f"scans/{'left' if n % 2 else 'right'}/{'left' if n % 2 else 'right'} ({n})"
        files[f"{stem}.png"] = picture(n)
        files |= masks(n, several(n), lambda k, s=stem: f"{s}_mask{f'_{k}' if k else ''}.png")
    return files


def numbered_masks() -> Files:
    files = {}
    for n in range(PICTURES):
        files[f"photos/frame-{n * 7}.png"] = picture(n)
        files |= masks(n, several(n), lambda k, n=n: f"masks/frame-{n * 7}_mask_{k + 1}.png")
    return files


TAGS = ("cat-0", "cat-1", "dog-0")


def words_of_a_tool() -> Files:
    files = {}
    for n in range(PICTURES):
        files[f"images/task-{n}.png"] = picture(n)
        files |= masks(
            n, several(n),
            lambda k, n=n: f"masks/task-{n}-annotation-{n + 5}-by-1-tag-{TAGS[k]}.png",
        )  # fmt: skip
    return files


def a_folder_a_picture(digits: int) -> Files:
    files = {}
    for n in range(PICTURES):
        name = hashed(f"picture {n}", digits)
        files[f"train/{name}/images/{name}.png"] = picture(n)
        files |= masks(
            n, several(n),
            lambda k, n=n, at=name: f"train/{at}/masks/{hashed(f'mask {n} {k}', digits)}.png",
        )  # fmt: skip
    return files


def a_folder_of_masks_named_as_the_picture() -> Files:
    files = {}
    for n in range(PICTURES):
        files[f"set/images/shot_{n:03d}.png"] = picture(n)
        files |= masks(n, several(n), lambda k, n=n: f"set/masks/shot_{n:03d}/{k}.png")
    return files


def a_folder_of_masks_named_as_the_file() -> Files:
    named = a_folder_of_masks_named_as_the_picture()
    return {re.sub(r"(masks/shot_\d+)", r"\1.jpg", name): data for name, data in named.items()}


FORMS: dict[str, Callable[[], Files]] = {
    "x_mask, x_mask_1": mask_and_mask_1,
    "x_mask_1, x_mask_2": numbered_masks,
    "words of a tool": words_of_a_tool,
    "a folder a picture": lambda: a_folder_a_picture(64),
    "a folder a picture, short names": lambda: a_folder_a_picture(8),
    "a folder of masks": a_folder_of_masks_named_as_the_picture,
    "a folder of masks, with an extension": a_folder_of_masks_named_as_the_file,
}


def detected(files: Files, rules: layout_file.Rules | None = None) -> detect.Layout:
    names = sorted(files)
    return detect.detect(names, where="x.zip", read=lambda index: files[names[index]], layout=rules)


def built(files: Files, at: Path, **options: float) -> tuple[Path, dict[int, np.ndarray]]:
    """Build, and return OUT and the mask of each published picture."""
    source = pack(at / "x.zip", files)
    build([as_path(source)], at / "out", BuildOptions(val=0, workers=1, **options))  # type: ignore[arg-type]
    numbers = {picture(n): n for n in range(PICTURES)}
    published: dict[str, dict[str, bytes]] = {}
    for path in (at / "out").glob("train-*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file
                published.setdefault(key, {})[extension] = file.read()
    return at / "out", {
        numbers[each["fg_bg.png"]]: np.asarray(Image.open(io.BytesIO(each["mask.png"])))
        for each in published.values()
    }


@pytest.mark.parametrize("form", FORMS)
def test_all_masks_of_a_picture_are_united_and_recorded(form: str, tmp_path: Path) -> None:
    out, found = built(FORMS[form](), tmp_path)
    assert sorted(found) == list(range(PICTURES))
    for number, mask in found.items():
        whole = np.maximum.reduce([part(number, k) for k in range(several(number))])
        assert np.array_equal(mask, whole)
    converted = json.loads((out / "manifest.json").read_text())["layout"]["converted"]
    assert converted == {"mask: union of 2": 4, "mask: union of 3": 4}


@pytest.mark.parametrize("form", FORMS)
def test_the_layout_file_that_is_printed_unites_the_same_masks(form: str) -> None:
    files = FORMS[form]()
    found = detected(files)
    text = layout_file_writer.to_toml(found, sorted(files))
    again = detected(files, layout_file.parse(text, where="layout.toml"))
    assert again.united == found.united, text
    assert np.array_equal(again.members["mask"], found.members["mask"]), text


def test_a_second_mask_in_doubt_leaves_the_picture_out(tmp_path: Path) -> None:
    files: Files = {}
    for n in range(PICTURES):
        files |= {f"images/a_{n}.png": picture(n), f"masks/a_{n}.png": encoded(part(n, 0))}
    # It may be the mask of a picture a_3_2 that is missing, or the second mask of a_3.
    files["masks/a_3_2.png"] = encoded(part(3, 1))
    _, found = built(files, tmp_path, max_bad=0.2)
    assert sorted(found) == [n for n in range(PICTURES) if n != 3]
    lines = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert [(each["key"], each["reason"]) for each in rejected] == [
        ("a_3", "duplicate: 2 files claim to be its mask")
    ]


@pytest.mark.parametrize(
    ("form", "lost", "left_out"),
    [
        ("x_mask, x_mask_1", "scans/right/right (2)_mask_1.png", 2),
        ("x_mask_1, x_mask_2", "masks/frame-14_mask_1.png", 2),
        ("x_mask_1, x_mask_2", "masks/frame-35_mask_2.png", 5),
        ("words of a tool", "masks/task-2-annotation-7-by-1-tag-cat-0.png", 2),
        ("a folder of masks", "set/masks/shot_002/0.png", 2),
    ],
)
def test_a_gap_in_the_numbers_of_masks_leaves_the_picture_out(
    form: str, lost: str, left_out: int
) -> None:
    files = FORMS[form]()
    del files[lost]
    found = detected(files)
    assert len(found.keys) == PICTURES - 1
    assert [names for names in found.rejected if "with a gap" in names.reason]
    assert str(left_out) in found.rejected[0].member
    text = layout_file_writer.to_toml(found, sorted(files))
    assert detected(files, layout_file.parse(text, where="layout.toml")).keys == found.keys


def test_numbers_that_are_ids_of_instances_have_no_gaps() -> None:
    files: Files = {}
    for n in range(PICTURES):
        files[f"photos/frame-{n}.png"] = picture(n)
        files |= masks(n, several(n), lambda k, n=n: f"masks/frame-{n}_{100 * n + 7 * k}.png")
    assert len(detected(files).keys) == PICTURES


@pytest.mark.parametrize(
    "ends",
    [
        ("-annotation-{}-by-1-tag-cat-0", "-annotation-9{}-by-2-tag-cat-0"),
        ("_1stHO", "_2ndHO"),
        ("_mask_rater1", "_mask_rater2"),
    ],
)
def test_masks_by_two_annotators_are_not_united(ends: tuple[str, str]) -> None:
    files: Files = {}
    for n in range(PICTURES):
        files[f"images/task-{n}.png"] = picture(n)
        for k, end in enumerate(ends):
            files[f"masks/task-{n}{end.format(n)}.png"] = encoded(part(n, k))
    with pytest.raises(detect.LayoutError, match=r"2 files claim to be the mask of images/task-0"):
        detected(files)


def test_the_mask_of_a_missing_picture_is_no_second_mask() -> None:
    files: Files = {}
    for n in range(PICTURES):
        files |= {f"x/a_{n}.png": picture(n), f"x/a_{n}_mask.png": encoded(part(n, 0))}
    files["x/a_3_2_mask.png"] = encoded(part(3, 1))
    found = detected(files)
    assert len(found.keys) == PICTURES
    assert not found.united
    assert [each.member for each in found.unused] == ["x/a_3_2_mask.png"]


def test_masks_of_one_name_in_two_formats_are_not_united() -> None:
    files: Files = {}
    for n in range(PICTURES):
        files |= {f"images/{n}.png": picture(n), f"masks/{n}.png": encoded(part(n, 0))}
    file = io.BytesIO()
    np.save(file, part(4, 0))
    files["masks/4.npy"] = file.getvalue()
    found = detected(files)
    assert not found.united
    assert [each.key for each in found.rejected] == ["4"]


def test_digits_of_hexadecimal_names_join_nothing() -> None:
    files: Files = {}
    for n in range(PICTURES):
        files[f"images/{hashed(f'p{n}', 16)}.png"] = picture(n)
        files[f"masks/{hashed(f'm{n}', 16)}.png"] = encoded(part(n, 0))
    with pytest.raises(detect.LayoutError, match="no image has companions of its own name"):
        detected(files)


def test_masks_of_different_sizes_leave_the_picture_out(tmp_path: Path) -> None:
    files = numbered_masks()
    files["masks/frame-7_mask_2.png"] = encoded(np.zeros((SIDE * 2, SIDE), np.uint8))
    _, found = built(files, tmp_path, max_bad=0.2)
    assert sorted(found) == [n for n in range(PICTURES) if n != 1]


def test_a_damaged_part_leaves_the_picture_out(tmp_path: Path) -> None:
    files = numbered_masks()
    files["masks/frame-7_mask_2.png"] = files["masks/frame-7_mask_2.png"][:40]
    _, found = built(files, tmp_path, max_bad=0.2)
    assert sorted(found) == [n for n in range(PICTURES) if n != 1]


@pytest.mark.parametrize("end", ["-dpt_swin2_large_384", "_v2.1", "_zoe_nk_640x480", "_384"])
def test_a_constant_end_with_digits_does_not_hinder_pairing(end: str) -> None:
    files: Files = {}
    for n in range(PICTURES):
        stem = f"clip_{n % 2}_{n * 3:05d}"
        ramp = np.linspace(0, 250 - n, SIDE * SIDE).astype(np.uint8).reshape(SIDE, SIDE)
        files[f"rgb/{stem}.png"] = picture(n)
        files[f"mask/{stem}.png"] = encoded(part(n, 0))
        files[f"depth/{stem}{end}.png"] = encoded(ramp)
    found = detected(files)
    names = sorted(files)
    assert len(found.keys) == PICTURES
    for front, deep in zip(found.members["fg_bg"], found.members["depth"], strict=True):
        stem = names[front].removeprefix("rgb/").removesuffix(".png")
        assert names[deep] == f"depth/{stem}{end}.png"
