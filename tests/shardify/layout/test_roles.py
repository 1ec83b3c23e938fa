"""Roles are assigned together: by words, by what fits, and by pixels where words are in doubt."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from shardline_scenes import SIDE, background, depth, encoded, flat_mask, scene
from shardline_sources import pack, spread, zipped

from shardify.cli import survey_text
from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions, survey
from shardify.errors import LayoutError
from shardify.layout import detect, layout_file, layout_file_writer
from shardify.storage.paths import as_path

BACKS, SAMPLES = 4, 24
Files = dict[str, bytes]
Named = Callable[[int, int], str]
"""Number and background of a sample -> a file's name."""


def back_of(number: int) -> int:
    return number * BACKS // SAMPLES + 1


def object_of(number: int) -> np.ndarray:
    """(SIDE, SIDE) bool: a rectangle, and a corner that tells samples apart."""
    plane = np.zeros((SIDE, SIDE), np.bool_)
    plane[14:, 2 : 8 + number % 12] = True
    plane[SIDE - 2 :, SIDE - 1] = [number & 1, number >> 1 & 1]
    plane[SIDE - 4 : SIDE - 2, SIDE - 1] = [number >> 2 & 1, number >> 3 & 1]
    return plane


def mask(number: int) -> bytes:
    return encoded(np.where(object_of(number), np.uint8(255), np.uint8(0)), "PNG")


def composite(number: int, back: int) -> bytes:
    """The background, squashed, with an object of one colour on it."""
    plane = np.asarray(scene(back).resize((SIDE, SIDE))).copy()
    plane[object_of(number)] = 40 + 4 * number, 200, 250 - 4 * number
    return encoded(plane, "PNG")


def role(named: Named, data: Callable[[int], bytes], numbers: Iterable[int] | None = None) -> Files:
    numbers = range(SAMPLES) if numbers is None else numbers
    return {named(n, back_of(n)): data(n) for n in numbers}


def composites(named: Named) -> Files:
    return role(named, lambda n: composite(n, back_of(n)))


def masks(named: Named) -> Files:
    return role(named, mask)


def depths(named: Named, numbers: Iterable[int] | None = None) -> Files:
    return role(named, depth, numbers)


def parks(folder: str = "bg") -> Files:
    return {f"{folder}/park{b}.jpg": background(b) for b in range(1, BACKS + 1)}


# The names of the publication. Its depth maps are called masks of composites.
def fg_bg(n: int, b: int) -> str:
    return f"fg_bg/fg_{n % 7:03d}_bg_{b:03d}_{n:06d}.png"


def fg_bg_mask(n: int, b: int) -> str:
    return f"fg_bg_mask/fg_{n % 7:03d}_bg_{b:03d}_mask_{n:06d}.png"


def fg_bg_depth(n: int, b: int) -> str:
    return f"mask_fg_bg/fg_bg/mask_fg_{n % 7:03d}_bg_{b:03d}_{n:06d}.png"


def published(lead: str = "") -> dict[str, Files]:
    """The eight zips; ``lead`` are folders around what each holds."""
    parts = {
        "bg.zip": parks(),
        "fg_bg_correct": composites(fg_bg),
        "dataset_fg_bg_Mask_final": masks(fg_bg_mask),
        **{
            f"depth_{part + 1}.zip": depths(
                fg_bg_depth, range(SAMPLES * part // 5, SAMPLES * (part + 1) // 5)
            )
            for part in range(5)
        },
    }
    return {
        name: {lead + inner: data for inner, data in files.items()} for name, files in parts.items()
    }


def data_all(lead: str = "data_all/") -> Files:
    files = parks() | composites(fg_bg) | masks(fg_bg_mask)
    files |= {f"fg_bg_depth/{name}": data for name, data in depths(fg_bg_depth).items()}
    return {lead + name: data for name, data in files.items()}


def several(folder: Path, parts: dict[str, Files]) -> list[Path]:
    return [pack(folder / name, files) for name, files in parts.items()]


def form_named_one_by_one(at: Path) -> list[Path]:
    return several(at, published())


def form_folder_of_zips(at: Path) -> list[Path]:
    several(at / "downloads", published())
    return [at / "downloads"]


def form_below_outer_folders(at: Path) -> list[Path]:
    return several(at, published("content/gdrive/My Drive/S15 masks/"))


def form_one_depth_zip(at: Path) -> list[Path]:
    parts = {name: files for name, files in published().items() if "depth" not in name}
    return several(at, parts | {"depth_fg_bg.zip": depths(fg_bg_depth)})


def form_one_zip(at: Path) -> list[Path]:
    return [pack(at / "data_all.zip", data_all())]


def form_one_zip_below_outer_folders(at: Path) -> list[Path]:
    return [pack(at / "backup.zip", data_all("content/gdrive/My Drive/depth/data_all/"))]


def form_folder_of_files(at: Path) -> list[Path]:
    return [spread(at / "data_all", data_all(""))]


def form_zips_in_a_zip(at: Path) -> list[Path]:
    return [pack(at / "all.zip", {f"up/{n}": zipped(f) for n, f in published().items()})]


FORMS = [
    form_named_one_by_one, form_folder_of_zips, form_below_outer_folders, form_one_depth_zip,
    form_one_zip, form_one_zip_below_outer_folders, form_folder_of_files, form_zips_in_a_zip,
]  # fmt: skip


def check_shards(out: Path, lacks: str = "") -> None:
    """Every sample is there once, with its own mask, depth and background."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(out.glob("*-0*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file
                samples.setdefault(key, {})[extension] = file.read()
    banks: list[bytes] = []
    if lacks != "bg":
        with tarfile.open(out / "backgrounds.tar") as tar:
            banks = [file.read() for member in tar if (file := tar.extractfile(member))]
    truth = {composite(n, back_of(n)): n for n in range(SAMPLES)}
    assert sorted(truth[each["fg_bg.png"]] for each in samples.values()) == list(range(SAMPLES))
    for each in samples.values():
        n = truth[each["fg_bg.png"]]
        assert each.get("mask.png") == (None if lacks == "mask" else mask(n))
        assert each.get("depth.png") == (None if lacks == "depth" else depth(n))
        if lacks != "bg":
            assert banks[int(each["bg.cls"])] == background(back_of(n))


def run(sources: list[Path], out: Path) -> None:
    build([as_path(each) for each in sources], out, BuildOptions(val=0.25, workers=1))


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_builds(form: Callable[[Path], list[Path]], tmp_path: Path) -> None:
    run(form(tmp_path / "in"), tmp_path / "out")
    check_shards(tmp_path / "out")


@pytest.mark.parametrize("lacks", ["mask", "depth", "bg"])
@pytest.mark.parametrize("together", [False, True])
def test_a_published_form_builds_without_one_role(
    lacks: str, together: bool, tmp_path: Path
) -> None:
    words = {"mask": ("Mask_final", "fg_bg_mask/"), "depth": ("depth_", "fg_bg_depth/"),
             "bg": ("bg.zip", "all/bg/")}[lacks]  # fmt: skip
    if together:
        files = {name: data for name, data in data_all().items() if words[1] not in name}
        sources = [pack(tmp_path / "data_all.zip", files)]
    else:
        parts = {
            name: files
            for name, files in published().items()
            if not (name == words[0] if lacks == "bg" else words[0] in name)
        }
        sources = several(tmp_path, parts)
    run(sources, tmp_path / "out")
    check_shards(tmp_path / "out", lacks)


def test_numbers_in_the_published_names_may_be_places_in_a_sorted_list(tmp_path: Path) -> None:
    """The number after bg is 0-based, and park10 comes before park2."""
    ranked = sorted(range(1, 13), key=lambda b: f"park{b}")
    files = {f"data_all/bg/park{b}.jpg": background(b) for b in range(1, 13)}
    for n in range(48):
        place_ = n // 4
        stem, b = f"fg_{n % 4:03d}_bg_{place_:03d}", ranked[place_]
        files |= {
            f"data_all/fg_bg/{stem}_{n:06d}.png": composite(n, b),
            f"data_all/fg_bg_mask/{stem}_mask_{n:06d}.png": mask(n),
            f"data_all/fg_bg_depth/mask_fg_bg/fg_bg/mask_{stem}_{n:06d}.png": depth(n),
        }
    run([pack(tmp_path / "x.zip", files)], tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "backgrounds.tar") as tar:
        banks = [file.read() for member in tar if (file := tar.extractfile(member))]
    truth = {composite(n, ranked[n // 4]): background(ranked[n // 4]) for n in range(48)}
    seen = 0
    for path in (tmp_path / "out").glob("*-0*.tar"):
        with tarfile.open(path) as tar:
            data = {m.name: file.read() for m in tar if (file := tar.extractfile(m))}
        for name in data:
            if name.endswith(".fg_bg.png"):
                number = int(data[name.replace("fg_bg.png", "bg.cls")])
                assert banks[number] == truth[data[name]]
                seen += 1
    assert seen == 48


def folders(one: str, two: str, three: str, extension: str = "png") -> Files:
    """A folder a role, with equal stems."""
    return (
        composites(lambda n, _: f"{one}/{n:04d}.{extension}")
        | masks(lambda n, _: f"{two}/{n:04d}.png")
        | depths(lambda n, _: f"{three}/{n:04d}.png")
    )


def zorro(n: int) -> str:
    """Every word for a role is part of the sample's name."""
    return f"mask_of_zorro_depth_bg_{back_of(n):03d}_image_{n:06d}"


def dotted(n: int) -> str:
    return f"fg.{n % 7:03d}.bg.{back_of(n):03d}.{n:06d}"


def by_stem(stem: Callable[[int], str], lead: str, mask: str, depth: str) -> Files:
    """Roles told by what follows the sample's name."""
    return (
        composites(lambda n, _: f"{lead}{stem(n)}.png")
        | masks(lambda n, _: f"{lead}{stem(n)}{mask}.png")
        | depths(lambda n, _: f"{lead}{stem(n)}{depth}.png")
    )


def by_folder(stem: Callable[[int], str]) -> Files:
    return parks() | (
        composites(lambda n, _: f"fg_bg/{stem(n)}.png")
        | masks(lambda n, _: f"masks/{stem(n)}.png")
        | depths(lambda n, _: f"depth/{stem(n)}.png")
    )


KINDS: dict[str, Files] = {
    "no word for depth": folders("image", "label", "far"),
    "no word at all": folders("a", "b", "c"),
    "no word but of one": folders("x", "xannot", "xdist"),
    "the role in the outer of two folders": folders("a/files", "b/files", "c/files"),
    "mask means depth": folders("photos", "alpha", "mask"),
    "mask and depth are swapped": folders("images", "depth", "mask"),
    "masks of depth are depth maps": folders("images", "masks", "depth_mask"),
    "composites are called masks": folders("masked", "masks", "depth"),
    "composites are called masks, in full": folders("mask_fg_bg", "mask", "depth"),
    "an outer folder tells": folders("rgb", "m/mask", "depth/mask/fg_bg"),
    "an inner folder tells": folders("set/images", "set/masks", "set/masks/depth"),
    "role words in sample names": by_folder(zorro),
    "role words in sample names, one folder": by_stem(zorro, "all/", "_mask", "_depth"),
    "role words in some names": by_folder(
        lambda n: zorro(n) if n % 3 else f"cat_{n:06d}_bg_{back_of(n):03d}"
    ),
    "dots in sample names": by_folder(dotted),
    "dots, one folder": by_stem(dotted, "", ".mask", ".depth"),
    "upper case": folders("RGB", "MASK", "DEPTH"),
    "made to be looked at": folders("images", "masks", "depth")
    | depths(lambda n, _: f"depth_vis/{n:04d}.png"),
    "edges beside": folders("images", "masks", "depth") | masks(lambda n, _: f"edges/{n:04d}.png"),
    "instances beside": folders("JPEGImages", "SegmentationClass", "depth")
    | masks(lambda n, _: f"SegmentationObject/{n:04d}.png"),
    "superpixels beside": folders("images", "masks", "depth")
    | composites(lambda n, _: f"images/{n:04d}_superpixels.png"),
    "names of tools": by_stem(lambda n: f"{n:04d}", "all/", "_anno", "_depth"),
    "frames are numbered in each folder": composites(
        lambda n, b: f"room_{'abcd'[b - 1]}/rgb_{n % 6:05d}.png"
    )
    | masks(lambda n, b: f"room_{'abcd'[b - 1]}/sync_mask_{n % 6:05d}.png")
    | depths(lambda n, b: f"room_{'abcd'[b - 1]}/sync_depth_{n % 6:05d}.png"),
    "scenes": composites(lambda n, b: f"scene_{'abcd'[b - 1]}/rgb/{n:04d}.png")
    | masks(lambda n, b: f"scene_{'abcd'[b - 1]}/mask/{n:04d}.png")
    | depths(lambda n, b: f"scene_{'abcd'[b - 1]}/depth/{n:04d}.png"),
}


def check(files: Files) -> detect.Layout:
    names = sorted(files, key=lambda name: (hash(name), name))
    found = detect.detect(names, where="x.zip", read=lambda index: files[names[index]])
    assert len(found.keys) == SAMPLES
    truth = {composite(n, back_of(n)): n for n in range(SAMPLES)}
    columns = [found.members[role].tolist() for role in ("fg_bg", "mask", "depth")]
    for front, its_mask, its_depth in zip(*columns, strict=True):
        n = truth[files[names[front]]]
        assert files[names[its_mask]] == mask(n)
        assert files[names[its_depth]] == depth(n)
    # What inspect prints finds the same again.
    told = layout_file.parse(layout_file_writer.to_toml(found, names), where="layout.toml")
    again = detect.detect(names, where="x.zip", read=lambda index: files[names[index]], layout=told)
    assert again.keys == found.keys
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_roles_are_right_whatever_the_names(kind: str) -> None:
    check(KINDS[kind])


def test_one_zip_a_role_is_told_by_the_zips_names(tmp_path: Path) -> None:
    plain = {"color": composites, "matte": masks, "disparity": depths}
    parts = {
        f"{name}_2024.zip": make(lambda n, _: f"export/{n:04d}.png") for name, make in plain.items()
    }
    found = survey([as_path(each) for each in several(tmp_path, parts)], BuildOptions(val=0.25))
    assert found.layout.roles == ("fg_bg", "mask", "depth")
    where = {
        role: found.catalog.names[int(column[0])] for role, column in found.layout.members.items()
    }
    assert [name.partition("_")[0] for name in where.values()] == ["color", "matte", "disparity"]


def test_what_decided_is_told() -> None:
    plain = check(folders("images", "masks", "depth")).description["roles"]
    assert isinstance(plain, dict)
    assert plain["decided by"] == "names"
    assert plain["mask"]["words"] == ["mask"]
    assert plain["mask"]["pixels"] == {"two values": 3}
    unsure = check(folders("a", "b", "c")).description["roles"]
    assert isinstance(unsure, dict)
    assert unsure["decided by"] == "names and pixels"
    assert unsure["depth"]["words"] == []
    assert set(unsure["depth"]["pixels"]) == {"many gray values"}


def refused(files: Files) -> str:
    names = sorted(files)
    with pytest.raises(LayoutError) as caught:
        detect.detect(names, where="x.zip", read=lambda index: files[names[index]])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_two_readings_that_suit_alike_are_refused_with_both() -> None:
    twice = composites(lambda n, _: f"a/{n}.png") | composites(lambda n, _: f"b/{n}.png")
    said = refused(twice | masks(lambda n, _: f"mask/{n}.png"))
    assert "can be read in more than one way" in said
    assert "a/*.png (24 files, colour images)" in said
    assert "b/*.png (24 files, colour images)" in said
    assert "[100% of samples complete]" in said


def test_two_files_that_claim_one_role_are_refused_with_both() -> None:
    files = folders("images", "masks", "depth")
    arrays = {}
    for n in range(SAMPLES):
        file = io.BytesIO()
        np.save(file, np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
        arrays[f"depth/{n:04d}.npy"] = file.getvalue()
    said = refused(files | arrays)
    assert "2 files claim to be the depth of a sample" in said
    assert "depth/*.npy" in said
    assert "depth/*.png" in said


def test_a_field_of_view_beside_masks_drawn_by_hand_is_refused_with_both() -> None:
    files = composites(lambda n, _: f"images/{n:02d}_training.png")
    files |= masks(lambda n, _: f"1st_manual/{n:02d}_manual1.png")
    files |= {f"mask/{n:02d}_training_mask.png": mask(5) for n in range(SAMPLES)}
    with pytest.raises(LayoutError, match=r"2 files claim to be the mask .*1?st_manual/"):
        check(files)


def test_colour_images_that_no_word_calls_depth_are_no_depth() -> None:
    files = composites(lambda n, _: f"stills/{n:02d}.png")
    labels = np.zeros((SIDE, SIDE, 3), np.uint8)
    labels[:9], labels[9:14] = (128, 64, 0), (0, 128, 192)
    files |= {f"approved/{n:02d}_L.png": encoded(labels, "PNG") for n in range(SAMPLES)}
    with pytest.raises(LayoutError, match=r"approved/\*.png .* may be label maps"):
        check(files)


def test_masks_are_no_composites_where_these_are_missing() -> None:
    files = masks(lambda n, _: f"fg_bg_mask/{n}.png") | depths(lambda n, _: f"fg_bg_depth/{n}.png")
    assert "no composite images" in refused(files)


def test_label_maps_that_no_word_calls_masks_are_not_taken_for_masks() -> None:
    def classes(n: int) -> bytes:
        plane = np.zeros((SIDE, SIDE), np.uint8)
        plane[4:12], plane[12:20] = 3 + n % 5, 15
        return encoded(plane, "PNG")

    said = refused(
        composites(lambda n, _: f"images/{n}.png")
        | role(lambda n, _: f"SegmentationClass/{n}.png", classes)
    )
    assert "no masks" in said
    assert "SegmentationClass/*.png: 24 files, a few values" in said


def test_files_that_cannot_be_decoded_leave_the_decision_to_words() -> None:
    files = folders("images", "masks", "depth")
    broken = {name: data if "images" in name else b"damaged" for name, data in files.items()}
    names = sorted(broken)
    found = detect.detect(names, where="x.zip", read=lambda index: broken[names[index]])
    assert found.roles == ("fg_bg", "mask", "depth")


def test_flat_masks_of_any_level_are_two_values() -> None:
    files = composites(lambda n, _: f"p/{n}.png")
    files |= role(lambda n, _: f"q/{n}.png", lambda n: flat_mask(1 + n % 2 * 254))
    names = sorted(files)
    found = detect.detect(names, where="x.zip", read=lambda index: files[names[index]])
    assert found.roles == ("fg_bg", "mask")


def test_inspect_prints_a_line_a_role_with_what_decided(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", folders("a", "masks", "depth/mask"))
    found = survey([as_path(source)], BuildOptions(val=0.25))
    lines = survey_text(found.to_json() | {"layout_file": ""}).splitlines()
    assert "# roles        decided by names" in lines
    assert "# fg_bg        24 files, a/*.png; no word; pixels of some: colour images (3)" in lines
    told = "24 files, depth/mask/*.png; words: depth, mask; pixels of some: many gray values (3)"
    assert f"# depth        {told}" in lines


def test_numbered_backgrounds_beside_many_samples_are_never_left_aside() -> None:
    files = {f"bg_{b}.jpg": background(b) for b in range(1, BACKS + 1)}
    files |= by_stem(lambda n: f"pic_{n}_bg_{back_of(n)}", "", "_mask", "_depth")
    assert check(files).roles == ("bg", "fg_bg", "mask", "depth")
