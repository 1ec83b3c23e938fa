"""What a data set's masks mean is told from them, recorded, and held against every one of them."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shardline_sources import inline, pack, run

from shardify.conversion import label_encoding
from shardify.errors import BuildError, OutputError

__all__ = ["inline"]

pytestmark = pytest.mark.usefixtures("inline")

SIDE = 48
PALETTE = [0, 0, 0, *(31 * place % 256 for place in range(765))]


def encoded(plane: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    (plane if isinstance(plane, Image.Image) else Image.fromarray(plane)).save(buffer, kind)
    return buffer.getvalue()


def shape(number: int) -> np.ndarray:
    plane = np.zeros((SIDE, SIDE), bool)
    top, left = 4 + number * 5 % 20, 3 + number * 7 % 20
    plane[top : top + 15, left : left + 18] = True
    return plane


def photo(number: int) -> bytes:
    noise = np.random.Generator(np.random.Philox(key=number)).integers(0, 256, (6, 6, 3))
    image = Image.fromarray(noise.astype(np.uint8)).resize((SIDE, SIDE))
    return encoded(image, "JPEG")


def level(value: int, dtype: Any = np.uint8) -> Callable[[int], bytes]:
    return lambda number: encoded(np.where(shape(number), value, 0).astype(dtype))


def trimap(number: int) -> bytes:
    plane = np.where(shape(number), 255, 0)
    plane[10:30, 10:16] = 130
    return encoded(plane.astype(np.uint8))


def indices(value: int, thin: int = 0) -> Callable[[int], bytes]:
    def mask(number: int) -> bytes:
        plane = np.where(shape(number), value, 0)
        if thin:
            edge = shape(number) ^ np.roll(shape(number), 1, 0)
            plane[edge] = thin
        image = Image.fromarray(plane.astype(np.uint8), "P")
        image.putpalette(PALETTE)
        return encoded(image)

    return mask


def source(path: Path, mask: Callable[[int], bytes], count: int = 20, **odd: bytes) -> Path:
    """A zip of pictures and masks; ``odd`` gives the masks of some numbers, as n7=..."""
    files = {}
    for number in range(count):
        files[f"images/{number:04d}.jpg"] = photo(number)
        files[f"masks/{number:04d}.png"] = odd.get(f"n{number}") or mask(number)
    return pack(path / "data.zip", files)


def planes(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, end = member.name.partition(".")
                if end.startswith("mask"):
                    with Image.open(io.BytesIO(tar.extractfile(member).read())) as image:  # type: ignore[union-attr]
                        found[key] = np.asarray(image)
    return found


def rejected(out: Path) -> list[tuple[str, str]]:
    lines = map(json.loads, (out / "rejected.jsonl").read_text().splitlines())
    return [(line["member"], line["reason"]) for line in lines]


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (level(5), "level 5"),
        (level(1, np.uint16), "level 1"),
        (level(255, np.uint16), "threshold"),
        (level(65535, np.uint16), "threshold 65535"),
        (indices(12), "level 12"),
        (lambda number: indices(1 + number)(number), "one value"),
    ],
)
def test_the_rule_of_the_masks_is_recorded_and_followed(
    tmp_path: Path, mask: Callable[[int], bytes], rule: str
) -> None:
    for verify in ("headers", "none", "decode"):
        out = tmp_path / verify
        manifest = run([source(tmp_path, mask)], out, verify=verify).manifest
        assert manifest.layout["masks"] == rule
        assert manifest.layout["mask_values"]["read"] == 20  # type: ignore[index]
        found = planes(out)
        assert len(found) == 20
        for key, plane in found.items():
            assert ((plane == 255) == shape(int(key))).all() and set(np.unique(plane)) == {0, 255}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (indices(15, thin=255), r"data.zip: masks/0000.png: .* 0, 15, 255, of which 255 is thin"),
        (trimap, r"masks/0000.png: .* 0, 130, 255, of which 130 fills areas \(a trimap\)"),
        (lambda number: (level(1) if number % 2 else level(255))(number), "of mixed meaning"),
        (level(0), "all 20 masks are empty"),
        (lambda _: encoded(np.full((SIDE, SIDE), 255, np.uint8)), "all 20 masks are full"),
    ],
)
def test_masks_that_are_not_binary_refuse_the_build_in_one_line(
    tmp_path: Path, mask: Callable[[int], bytes], message: str
) -> None:
    with pytest.raises(BuildError, match=message) as refusal:
        run([source(tmp_path, mask)], tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert "layout file" in str(refusal.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_value_that_an_error_proposes_is_never_the_void_line(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"void line.*\[mask\] object = 15 "):
        run([source(tmp_path, indices(15, thin=255))], tmp_path / "out")


@pytest.mark.parametrize("codec", ["keep", "png"])
@pytest.mark.parametrize("looked_at", [4, 128])
def test_a_converted_mask_that_the_rule_does_not_fit_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, looked_at: int
) -> None:
    monkeypatch.setattr(label_encoding, "_MAX_MASKS_READ", looked_at)
    odd = {"n8": indices(15, thin=255)(8), "n9": indices(15, thin=9)(9)}
    path = source(tmp_path, indices(15), 24, **odd)
    run([path], tmp_path / "out", max_bad=0.1, codec=codec)
    assert sorted(rejected(tmp_path / "out")) == [
        ("masks/0008.png", "a mask with other values than 0 and 15"),
        ("masks/0009.png", "a mask with other values than 0 and 15"),
    ]
    assert len(planes(tmp_path / "out")) == 22


def test_where_a_standard_mask_is_seen_that_does_not_fit_every_one_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_encoding, "_MAX_MASKS_READ", 11)
    # Every second of 21 is looked at: of these two only the first.
    path = source(tmp_path, level(255), 21, n6=trimap(6), n9=trimap(9))
    monkeypatch.setattr("shardify.conversion.task_list._MEASURED_SAMPLES", 1)
    run([path], tmp_path / "out", max_bad=0.1)
    assert [name for name, _ in sorted(rejected(tmp_path / "out"))] == [
        "masks/0006.png",
        "masks/0009.png",
    ]


def test_a_misfit_among_the_few_masks_that_were_decoded_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_encoding, "_MAX_MASKS_READ", 2)
    path = source(tmp_path, level(255), 21, n6=trimap(6))
    report = run([path], tmp_path / "out", val=0, max_bad=0.1)
    assert [name for name, _ in rejected(tmp_path / "out")] == ["masks/0006.png"]
    assert "--verify decode" in report.to_json()["warnings"][0]
    again = run([path], tmp_path / "decoded", val=0, max_bad=0.1, verify="decode")
    assert not again.to_json()["warnings"]


def test_standard_masks_that_fit_are_copied_without_being_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_encoding, "_MAX_MASKS_READ", 5)
    monkeypatch.setattr("shardify.conversion.task_list._MEASURED_SAMPLES", 1)
    reads: list[int] = []
    from shardify.images import pixels

    original = pixels.read_mask
    monkeypatch.setattr(pixels, "read_mask", lambda *given: reads.append(1) or original(*given))
    run([source(tmp_path, level(255))], tmp_path / "out")
    assert len(reads) <= 2


def test_an_object_is_sought_in_every_mask_before_all_are_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_encoding, "_MAX_MASKS_READ", 4)
    empty = encoded(np.zeros((SIDE, SIDE), np.uint8))
    path = source(tmp_path, lambda number: level(9)(number) if number == 11 else empty)
    assert run([path], tmp_path / "out").manifest.layout["masks"] == "level 9"
    assert sum(plane.any() for plane in planes(tmp_path / "out").values()) == 1


def test_a_layout_file_says_what_is_the_object(tmp_path: Path) -> None:
    path = source(tmp_path, indices(15, thin=255))
    layout = tmp_path / "layout.toml"
    text = "[roles]\nfg_bg = ['images/(?P<n>\\d+).jpg']\nmask = ['masks/(?P<n>\\d+).png']\n"
    keys = []
    for number, value in enumerate((15, "'nonzero'", 255)):
        layout.write_text(f"{text}[mask]\nobject = {value}\n")
        out = tmp_path / f"out{number}"
        manifest = run([path], out, layout=layout).manifest
        assert manifest.layout["mask_values"]["rule"] == "given by the layout file"  # type: ignore[index]
        found = planes(out)
        edge = {key: shape(int(key)) ^ np.roll(shape(int(key)), 1, 0) for key in found}
        for key, plane in found.items():
            whole = shape(int(key))
            expected = [whole & ~edge[key], whole | edge[key], edge[key]][number]
            assert ((plane == 255) == expected).all()
        keys.append(sorted(found))
    assert keys[0] == keys[1] == keys[2] and len(keys[0]) == 20
    layout.write_text(f"{text}[mask]\nobject = 15\n")
    assert run([path], tmp_path / "out0", layout=layout).already
    layout.write_text(f"{text}[mask]\nobject = 4\n")
    with pytest.raises(OutputError):
        run([path], tmp_path / "out0", layout=layout)


def test_masks_whose_object_fills_every_border_give_a_warning(tmp_path: Path) -> None:
    def inverted(number: int) -> bytes:
        return encoded(np.where(shape(number), 0, 255).astype(np.uint8))

    report = run([source(tmp_path, inverted)], tmp_path / "out")
    assert any("20 of 20 masks" in each for each in report.to_json()["warnings"])
    assert not run([source(tmp_path, level(255))], tmp_path / "plain").to_json()["warnings"]
