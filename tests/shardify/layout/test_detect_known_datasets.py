"""Data sets as people really pack them: each is told from its names, or settled by its pixels."""

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from shardify.errors import LayoutError
from shardify.layout import detect as layout
from shardify.layout import layout_file, layout_file_writer

BACKGROUNDS = 12
PER_BACKGROUND = 10


@dataclass(frozen=True)
class Sample:
    """One composite of the pool; numbers count from 1."""

    number: int
    back: int
    fore: int
    fg_bg: bytes
    mask: bytes
    depth: bytes


@dataclass(frozen=True)
class Pool:
    """Small pictures from which every data set here is put together."""

    backs: dict[int, bytes]
    samples: list[Sample]

    def moved(self, order: Callable[[int], int]) -> Iterator[tuple[Sample, int]]:
        """Samples, renumbered: ``order`` gives the background (1 …) that number n must have."""
        left: dict[int, list[Sample]] = {}
        for sample in self.samples:
            left.setdefault(sample.back, []).append(sample)
        for number in range(1, len(self.samples) + 1):
            yield left[order(number)].pop(), number


def encode(pixels: npt.NDArray[np.uint8], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def pool() -> Pool:
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 256, (BACKGROUNDS, 6, 9, 3), np.uint8)
    pictures = [Image.fromarray(grid).resize((90, 60), Image.Resampling.BICUBIC) for grid in grids]
    backs = {n: encode(np.asarray(each), "JPEG") for n, each in enumerate(pictures, 1)}
    samples = []
    for number in range(1, BACKGROUNDS * PER_BACKGROUND + 1):
        back = (number - 1) // PER_BACKGROUND + 1
        front = np.asarray(pictures[back - 1].resize((48, 48))).copy()
        left, top = rng.integers(0, 28, 2)
        mask = np.zeros((48, 48), np.uint8)
        mask[top : top + 20, left : left + 20] = 255
        front[mask > 0] = rng.integers(0, 256, 3, np.uint8)
        depth = np.repeat(np.arange(48, dtype=np.uint8)[:, None] * 5, 48, axis=1)
        samples.append(
            Sample(
                number=number,
                back=back,
                fore=(number - 1) % 5 + 1,
                fg_bg=encode(front, "JPEG"),
                mask=encode(mask),
                depth=encode(depth),
            )
        )
    return Pool(backs=backs, samples=samples)


Files = dict[str, bytes]
Truth = dict[str, str]
"""The composite's path -> the background's path."""


def detect(files: Files, *, blind: bool = False) -> layout.Layout:
    """Detect in shuffled order; ``blind`` without a look at any pixel."""
    names = list(files)
    random.Random(1).shuffle(names)
    found = layout.detect(
        names, where="data.zip", read=None if blind else lambda index: files[names[index]]
    )
    found.description["names"] = names
    return found


def check(files: Files, truth: Truth, *, blind: bool = False) -> layout.Layout:
    """All samples are whole, companions hold one sample's pixels, and backgrounds are true."""
    found = detect(files, blind=blind)
    names = found.description["names"]
    assert isinstance(names, list)
    assert len(found.keys) == len(truth)
    assert len(set(found.keys)) == len(found.keys)
    assert found.keys == sorted(found.keys)
    assert not found.rejected
    for row in range(len(found.keys)):
        composite = names[found.members["fg_bg"][row]]
        assert composite in truth
        if "bg" in found.roles:
            back = found.background_members[found.background[row]]
            assert names[back] == truth[composite]
    return found


def companions(found: layout.Layout, files: Files) -> list[tuple[bytes, ...]]:
    names = found.description["names"]
    assert isinstance(names, list)
    columns = [found.members[role] for role in ("fg_bg", "mask", "depth")]
    return sorted(tuple(files[names[index]] for index in row) for row in zip(*columns, strict=True))


Made = tuple[Files, Truth]
Maker = Callable[[Pool], Made]


def put(
    files: Files, truth: Truth, sample: Sample, fg_bg: str, mask: str, depth: str, back: str
) -> None:
    files |= {fg_bg: sample.fg_bg, mask: sample.mask, depth: sample.depth}
    truth[fg_bg] = back


def padded(pool: Pool) -> Made:
    files, truth = {f"data/bg/park{n}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        stem = f"fg_{s.fore:03d}_bg_{s.back:03d}_{s.number:06d}"
        put(files, truth, s, f"data/fg_bg/{stem}.jpg", f"data/mask_fg_bg/fg_bg/mask_{stem}.jpg",
            f"data/depth{s.number % 5}/depth_{stem}.png", f"data/bg/park{s.back}.jpg")  # fmt: skip
    return files, truth


def role_in_the_middle(pool: Pool) -> Made:
    files, truth = {f"bg/{n:03d}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        stem, tail = f"fg_{s.fore:03d}_bg_{s.back:03d}", f"{s.number:06d}"
        put(files, truth, s, f"fg_bg/{stem}_{tail}.jpg", f"fg_bg_mask/{stem}_mask_{tail}.jpg",
            f"fg_bg_depth/{stem}_depth_{tail}.png", f"bg/{s.back:03d}.jpg")  # fmt: skip
    return files, truth


def blocks_of_unpadded(pool: Pool) -> Made:
    lexicographic = sorted(pool.backs, key=lambda n: f"bg{n}.jpg")
    files, truth = {f"Background/bg{n}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s, n in pool.moved(lambda n: lexicographic[(n - 1) // PER_BACKGROUND]):
        put(files, truth, s, f"part{n % 5}/Fg-Bg/fg-bg{n}.jpg",
            f"part{n % 5}/Fg-Bg-Mask/fg-bg-mask{n}.jpg", f"part{n % 5}/Depth/depth{n}.jpg",
            f"Background/bg{s.back}.jpg")  # fmt: skip
    return files, truth


def blocks_from_one(pool: Pool) -> Made:
    files, truth = {f"bg/bg_{n}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        n = s.number
        put(files, truth, s, f"fg_bg/fg_bg_{n}.jpg", f"fg_bg_mask/fg_bg_mask_{n}.jpg",
            f"depth/depth_{n}.jpg", f"bg/bg_{s.back}.jpg")  # fmt: skip
    return files, truth


def glued(pool: Pool) -> Made:
    files, truth = {f"bg/bg_{n}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        stem = f"bg_{s.back}fg_{s.fore}_{s.number}.jpg"
        put(files, truth, s, f"bg_fg/{stem}", f"masks/{stem}", f"depth/{stem}",
            f"bg/bg_{s.back}.jpg")  # fmt: skip
    return files, truth


def role_in_the_zip_alone(pool: Pool) -> Made:
    files, truth = {f"bg/bg_{n:03d}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        inner, part = f"bg_{s.back:03d}/{s.number % 17}.jpg", s.back % 2 + 1
        put(files, truth, s, f"fg_bg_{part}/{inner}", f"fg_bg_mask_{part}/{inner}",
            f"depth_{part}/{inner}", f"bg/bg_{s.back:03d}.jpg")  # fmt: skip
    return files, truth


def prefix_with_labels(pool: Pool) -> Made:
    files, truth = {f"bg/bg{n:03d}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        stem = f"bg{s.back:03d}/bg{s.back:03d}_fg{s.fore:03d}_{s.number:06d}"
        put(files, truth, s, f"out/images/{stem}.jpg", f"out/masks/{stem}.jpg",
            f"out/depth/{stem}.jpg", f"bg/bg{s.back:03d}.jpg")  # fmt: skip
        files[f"out/labels/{stem}.txt"] = b"label"
    return files, truth


def random_names_and_a_csv(pool: Pool) -> Made:
    rng = random.Random(4)
    word = lambda: "".join(rng.choice("ghjklmnpqrstvwxyz") for _ in range(9))  # noqa: E731
    back_of = {n: f"bg/{word()}.jpg" for n in pool.backs}
    files, truth = {back_of[n]: data for n, data in pool.backs.items()}, Truth()
    lines = ["background,composite,mask,depth"]
    for s in pool.samples:
        names = f"fg_bg/{word()}.jpg", f"mask/{word()}.jpg", f"depth/{word()}.png"
        put(files, truth, s, *names, back_of[s.back])
        cells = [back_of[s.back], *names]
        lines.append(",".join(cell.rpartition("/")[2] for cell in cells))
    files["map.csv"] = "\r\n".join(lines).encode()
    return files, truth


def same_stems_in_every_folder(pool: Pool) -> Made:
    files, truth = {f"bg/bg_{n:03d}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        inner = f"bg_{s.back:03d}/img_{s.number % PER_BACKGROUND:04d}"
        put(files, truth, s, f"fg_bg/{inner}.jpg", f"mask/{inner}.jpg", f"depth/{inner}.jpg",
            f"bg/bg_{s.back:03d}.jpg")  # fmt: skip
    return files, truth


def no_backgrounds(pool: Pool) -> Made:
    files, truth = Files(), Truth()
    for s in pool.samples:
        put(files, truth, s, f"images/fgbg{s.number:06d}.jpg", f"masks/mask{s.number:06d}.jpg",
            f"depth/fgbg{s.number:06d}.jpg", "")  # fmt: skip
    return files, truth


def short_words(pool: Pool) -> Made:
    files, truth = {f"bg/b{n - 1:03d}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        stem = f"b{s.back - 1:03d}_f{s.fore:03d}_{s.number}"
        put(files, truth, s, f"bgfg_{stem}.jpg", f"mask_{stem}.jpg", f"densedepthbgfg_{stem}.jpg",
            f"bg/b{s.back - 1:03d}.jpg")  # fmt: skip
    return files, truth


def first_characters(pool: Pool) -> Made:
    files, truth = {f"bg/bg_{n:02d}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        inner = f"bg_{s.back:02d}/bg_{s.back:02d}_fg_{s.fore}_{'TF'[s.number % 2]}_{s.number}.jpg"
        put(files, truth, s, f"bg_fg/{inner}", f"bg_fg_mask/{inner}", f"bg_fg_depth/{inner}",
            f"bg/bg_{s.back:02d}.jpg")  # fmt: skip
    return files, truth


def suffixes_and_a_tab_map(pool: Pool) -> Made:
    files, truth = {f"bg/bg{n:03d}.jpeg": data for n, data in pool.backs.items()}, Truth()
    lines = []
    for s in pool.samples:
        stem = f"bg_fg/bg{s.back:03d}_fg{s.fore:03d}_{s.number:02d}"
        put(files, truth, s, f"{stem}.jpeg", f"{stem}_mask.jpeg", f"{stem}_depth_map.jpeg",
            f"bg/bg{s.back:03d}.jpeg")  # fmt: skip
        lines.append(f"bg{s.back:03d}.jpeg\t{stem.rpartition('/')[2]}.jpeg")
    files["file_map.txt"] = "\n".join(lines).encode()
    return files, truth


def words_that_matter(pool: Pool) -> Made:
    files, truth = {f"bg/bg_{n}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        stem = f"{'cat' if s.number % 2 else 'dog'}_{s.number // 2}_bg_{s.back}"
        put(files, truth, s, f"fg_bg/{stem}.jpg", f"mask/{stem}_mask.png", f"depth/{stem}.png",
            f"bg/bg_{s.back}.jpg")  # fmt: skip
    return files, truth


def modulo(pool: Pool) -> Made:
    files, truth = {f"bg/bg{n}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s, n in pool.moved(lambda n: (n - 1) % BACKGROUNDS + 1):
        base = f"fg_bg{n}.jpg"
        put(files, truth, s, f"fg_bg/{base}", f"mask/{base}", f"depth/{base}", f"bg/bg{s.back}.jpg")
    return files, truth


def index_from_zero(pool: Pool) -> Made:
    lexicographic = sorted(pool.backs, key=lambda n: f"park{n}.jpg")
    files, truth = {f"bg/park{n}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        stem = f"fg_{s.fore:03d}_bg_{lexicographic.index(s.back):03d}_{s.number:06d}"
        put(files, truth, s, f"fg_bg/{stem}.jpg", f"mask/mask_{stem}.jpg", f"depth/{stem}.png",
            f"bg/park{s.back}.jpg")  # fmt: skip
    return files, truth


def named_backgrounds(pool: Pool) -> Made:
    words = ["beach", "wood", "lake", "hill", "road", "mall", "pier", "farm", "dune", "moor",
             "cave", "dock"]  # fmt: skip
    files, truth = {f"bg/{words[n - 1]}.jpg": data for n, data in pool.backs.items()}, Truth()
    for s in pool.samples:
        stem = f"{words[s.back - 1]}_{s.number}"
        put(files, truth, s, f"overlay/{stem}.jpg", f"mask/{stem}.jpg", f"depth/{stem}.png",
            f"bg/{words[s.back - 1]}.jpg")  # fmt: skip
    return files, truth


STATED = [
    padded, role_in_the_middle, glued, role_in_the_zip_alone, prefix_with_labels,
    same_stems_in_every_folder, no_backgrounds, short_words, first_characters,
    suffixes_and_a_tab_map, named_backgrounds, words_that_matter,
]  # fmt: skip
SETTLED = [blocks_of_unpadded, blocks_from_one, modulo, index_from_zero]


@pytest.mark.parametrize("maker", [*STATED, *SETTLED, random_names_and_a_csv])
def test_layout_is_told_whole_and_right(pool: Pool, maker: Maker) -> None:
    files, truth = maker(pool)
    found = check(files, truth)
    expected = sorted((s.fg_bg, s.mask, s.depth) for s in pool.samples)
    assert companions(found, files) == expected


@pytest.mark.parametrize("maker", [*STATED, *SETTLED, random_names_and_a_csv])
def test_the_layout_file_that_is_printed_finds_the_same_samples(pool: Pool, maker: Maker) -> None:
    files, _ = maker(pool)
    found = detect(files)
    names = found.description.pop("names")
    assert isinstance(names, list)
    text = layout_file_writer.to_toml(found, names)
    told = layout_file.parse(text, where="layout.toml")
    again = layout.detect(
        names, where="data.zip", read=lambda index: files[names[index]], layout=told
    )
    assert again.keys == found.keys, text
    assert again.background_ids == found.background_ids, text
    assert np.array_equal(again.background, found.background), text
    for role, column in found.members.items():
        assert np.array_equal(again.members[role], column), text


@pytest.mark.parametrize("maker", STATED)
def test_names_that_state_the_background_need_no_pixels(pool: Pool, maker: Maker) -> None:
    check(*maker(pool), blind=True)


@pytest.mark.parametrize("maker", SETTLED)
def test_names_that_leave_the_background_open_are_refused_unseen(pool: Pool, maker: Maker) -> None:
    with pytest.raises(LayoutError, match=r"^data.zip: .*; pass --layout with a rule"):
        detect(maker(pool)[0], blind=True)


@pytest.mark.parametrize("maker", SETTLED)
def test_the_rule_that_pixels_choose_is_recorded_with_its_margin(pool: Pool, maker: Maker) -> None:
    told = detect(maker(pool)[0]).description["background"]
    assert isinstance(told, dict)
    assert told["proof"] == "pixels outside the mask"
    assert told["agrees"] >= 0.95
    assert told["margin"] > 3
    assert told["samples"] >= 48


def test_names_that_the_pixels_contradict_are_refused_with_scores(pool: Pool) -> None:
    files, _ = padded(pool)
    wrong = {}
    for name, data in files.items():
        for n in range(BACKGROUNDS, 0, -1):
            name = name.replace(f"_bg_{n:03d}_", f"_bg_{n % BACKGROUNDS + 1:03d}~")
        wrong[name.replace("~", "_")] = data
    with pytest.raises(LayoutError, match=r"pixels contradict: .* fits 100% \(error \d"):
        detect(wrong)


def test_backgrounds_that_no_rule_gives_are_refused_with_scores(pool: Pool) -> None:
    files, _ = blocks_from_one(pool)
    keys = [name for name in files if name.startswith("fg_bg/")]
    shuffled = random.Random(2).sample(keys, len(keys))
    mixed = dict(files)
    for one, other in zip(keys, shuffled, strict=True):
        for old, new in (
            ("fg_bg/fg_bg_", "fg_bg/fg_bg_"),
            ("fg_bg/fg_bg_", "fg_bg_mask/fg_bg_mask_"),
        ):
            mixed[one.replace(old, new)] = files[other.replace(old, new)]
    with pytest.raises(LayoutError, match=r"single out no rule: .* fits \d+% \(error"):
        detect(mixed)


def test_two_backgrounds_that_look_alike_leave_no_winner(pool: Pool) -> None:
    same = dict.fromkeys(pool.backs, pool.backs[1])
    samples = [s for s in pool.samples if s.back == 1]
    files, _ = blocks_from_one(Pool(backs=same, samples=samples * 1))
    with pytest.raises(LayoutError, match="single out no rule"):
        detect(files)


def test_backgrounds_in_a_folder_that_no_word_tells_are_asked_for(pool: Pool) -> None:
    files, _ = padded(pool)
    renamed = {name.replace("data/bg/", "data/places/"): data for name, data in files.items()}
    with pytest.raises(LayoutError, match=r"no folder is named for backgrounds; .* places/\*\.jpg"):
        detect(renamed)
    left = {name: data for name, data in files.items() if "/bg/" not in name}
    assert detect(left).roles == ("fg_bg", "mask", "depth")


def test_cutouts_and_their_masks_are_left_aside(pool: Pool) -> None:
    files, truth = padded(pool)
    for number in range(9):
        files |= {f"data/fg/fg_{number}.png": b"cut-out", f"data/fg_mask/fg_{number}.png": b"mask"}
    found = check(files, truth)
    assert found.description["ignored"] == {"images without a role": 18}


def test_unequal_counts_are_paired_by_name_and_the_rest_is_named(pool: Pool) -> None:
    files = Files()
    for s in pool.samples:
        name = f"{s.number * 7:06d}.jpg"
        if s.number % 11:
            files[f"OverlayedImages/{name}"] = s.fg_bg
        if s.number % 13:
            files[f"OverlayedMasks/{name}"] = s.mask
        if s.number % 17:
            files[f"DepthImage/{name}"] = s.depth
    found = detect(files)
    whole = {
        s.number * 7 for s in pool.samples if s.number % 11 and s.number % 13 and s.number % 17
    }
    assert {int(key) for key in found.keys} == whole
    assert len(found.rejected) == sum(
        s.number % 11 > 0 and s.number * 7 not in whole for s in pool.samples
    )
    assert all(each.reason.startswith("incomplete: no ") for each in found.rejected)
    surplus = [(s.number % 13 > 0) + (s.number % 17 > 0) for s in pool.samples if not s.number % 11]
    assert len(found.unused) == sum(surplus)
    expected = sorted((s.fg_bg, s.mask, s.depth) for s in pool.samples if s.number * 7 in whole)
    assert companions(found, files) == expected


def test_given_train_and_val_folders_are_the_splits(pool: Pool) -> None:
    files = Files()
    for s in pool.samples:
        part = "val" if s.number % 5 == 0 else "train"
        files |= {
            f"data/{part}/images/{s.number}.jpg": s.fg_bg,
            f"data/{part}/masks/{s.number}.png": s.mask,
        }
    found = detect(files)
    assert found.split is not None
    assert [bool(value) for value in found.split] == [int(key) % 5 == 0 for key in found.keys]
    assert found.roles == ("fg_bg", "mask")


def test_nyu_v2_has_images_and_depth_and_its_test_part_for_validation(pool: Pool) -> None:
    files = Files()
    for s in pool.samples:
        if s.number % 6:
            scene = f"data/nyu2_train/living_room_{s.back:04d}_out/{s.number}"
            files |= {f"{scene}.jpg": s.fg_bg, f"{scene}.png": s.depth}
        else:
            name = f"data/nyu2_test/{s.number:05d}"
            files |= {f"{name}_colors.png": s.fg_bg, f"{name}_depth.png": s.depth}
    files["data/nyu2_train.csv"] = b"data/nyu2_train/a.jpg,data/nyu2_train/a.png\r\n"
    found = detect(files, blind=True)
    assert found.roles == ("fg_bg", "depth")
    assert len(found.keys) == len(pool.samples)
    assert found.split is not None
    assert found.split.sum() == len(pool.samples) // 6


def test_an_extension_alone_is_told_by_what_the_pixels_look_like(pool: Pool) -> None:
    for role in ("mask", "depth"):
        files = Files()
        for s in pool.samples:
            label = s.mask if role == "mask" else s.depth
            files |= {f"set/{s.number}.jpg": s.fg_bg, f"set/{s.number}.png": label}
        assert detect(files).roles == ("fg_bg", role)
        with pytest.raises(LayoutError, match=r"can be read in more than one way"):
            detect(files, blind=True)


def test_carvana_leaves_its_unlabelled_test_part_aside(pool: Pool) -> None:
    files = Files()
    for s in pool.samples:
        stem = f"{s.number * 7919:012x}_{s.fore:02d}"
        files[f"train/train/{stem}.jpg"] = s.fg_bg
        files[f"train_masks/train_masks/{stem}_mask.gif"] = s.mask
        files[f"test/test/f{stem}.jpg"] = s.fg_bg
    found = detect(files, blind=True)
    assert found.roles == ("fg_bg", "mask")
    assert len(found.keys) == len(pool.samples)
    assert not found.rejected
    ignored = found.description["ignored"]
    assert ignored == {"images of a test split without labels": len(pool.samples)}


def test_diode_has_depth_and_its_validity_is_no_mask(pool: Pool) -> None:
    files = Files()
    for s in pool.samples:
        part = "val" if s.number % 4 == 0 else "train"
        stem = f"{part}/indoors/scene_{s.back:05d}/scan_{s.fore:05d}/{s.back:05d}_{s.number:03d}"
        files |= {
            f"{stem}.png": s.fg_bg,
            f"{stem}_depth.npy": b"depth",
            f"{stem}_depth_mask.npy": b"mask",
        }
    found = detect(files, blind=True)
    names = found.description["names"]
    assert isinstance(names, list)
    assert found.roles == ("fg_bg", "depth")
    assert len(found.keys) == len(pool.samples)
    assert found.description["ignored"] == {"validity masks of depth": len(pool.samples)}
    assert str(found.description["validity"]).startswith("ignored")
    assert all(names[index].endswith("_depth.npy") for index in found.members["depth"])


def test_oxford_pets_joins_images_and_trimaps(pool: Pool) -> None:
    files: Files = {"annotations/list.txt": b"Abyssinian_1 1 1 1", "annotations/README": b"read"}
    for s in pool.samples:
        stem = f"{'Abyssinian' if s.number % 2 else 'great_pyrenees'}_{s.number}"
        files |= {
            f"images/{stem}.jpg": s.fg_bg,
            f"annotations/trimaps/{stem}.png": s.mask,
            f"annotations/trimaps/._{stem}.png": b"litter",
            f"annotations/xmls/{stem}.xml": b"<xml/>",
        }
    found = detect(files, blind=True)
    assert found.roles == ("fg_bg", "mask")
    assert len(found.keys) == len(pool.samples)
    assert not found.rejected


def test_cityscapes_comes_in_one_zip_a_role(pool: Pool) -> None:
    files = Files()
    for s in pool.samples:
        part = ("train", "val", "test")[s.number % 3]
        stem = f"{part}/aachen/aachen_{s.number:06d}_000019"
        one, two = "leftImg8bit_trainvaltest", "disparity_trainvaltest"
        files |= {
            f"{one}/leftImg8bit/{stem}_leftImg8bit.png": s.fg_bg,
            f"{two}/disparity/{stem}_disparity.png": s.depth,
            f"gtFine_trainvaltest/gtFine/{stem}_gtFine_color.png": s.mask,
        }
    found = detect(files, blind=True)
    assert found.roles == ("fg_bg", "depth")
    assert found.split is not None
    assert len(found.keys) == len(pool.samples) * 2 // 3
    ignored = found.description["ignored"]
    assert isinstance(ignored, dict)
    assert ignored["samples of a test split"] == len(pool.samples) // 3


def test_real_photographs_prove_their_names(photos: Path) -> None:
    import zipfile

    with zipfile.ZipFile(photos) as source:
        names = source.namelist()
        found = layout.detect(names, where="photos", read=lambda index: source.read(names[index]))
    told = found.description["background"]
    assert isinstance(told, dict)
    assert told["agrees"] == 1.0
    assert told["error"] < 5
