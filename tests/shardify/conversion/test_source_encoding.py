"""What pictures and depths mean is told from their values, recorded and held against all."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shardline_sources import inline, pack, spread

from shardify.cli import main
from shardify.conversion.source_encoding import significant_bits
from shardify.dataset.manifest import Manifest

pytestmark = pytest.mark.usefixtures("inline")

__all__ = ["inline"]

COUNT = 8
SIDE = 48


def encoded(plane: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, kind, **options)
    return buffer.getvalue()


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (SIDE, SIDE, 3) and the mask of the object in it, away from the middle."""
    rng = np.random.Generator(np.random.Philox(key=number))
    coarse = Image.fromarray(rng.integers(0, 120, (4, 4, 3)).astype(np.uint8))
    picture = np.array(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    top, left = rng.integers(2, 10, 2)
    mask[top : top + 11, left : left + 19] = 255
    picture[mask > 0] = rng.integers(180, 250, 3)
    return picture, mask


def files(
    picture: "object" = None, mask: "object" = None, depth: "object" = None
) -> dict[str, bytes]:
    """A source of ``COUNT`` scenes; each argument is (extension, function of a scene)."""
    found = {}
    for number in range(COUNT):
        values = scene(number)
        for folder, maker in (("images", picture), ("masks", mask), ("depth", depth)):
            if maker is not None:
                extension, encode = maker
                data = encode(*values)
                found[f"{folder}/{number:03d}.{extension}"] = data
    return found


JPEG = ("jpg", lambda picture, _: encoded(picture, "JPEG", quality=95))
MASK = ("png", lambda _, mask: encoded(mask))


def depth_file(data: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, data)
    return buffer.getvalue()


def built(tmp_path: Path, source: dict[str, bytes], *words: str) -> tuple[Manifest, Path]:
    out = tmp_path / "out"
    main(["build", str(pack(tmp_path / "x.zip", source)), str(out), "--workers", "1", *words])
    return Manifest.load(out), out


def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, source: dict[str, bytes], *words: str
) -> str:
    """The one line in which both ``inspect`` and ``build`` refuse a source."""
    path = pack(tmp_path / "x.zip", source)
    shutil.rmtree(tmp_path / "refused", ignore_errors=True)
    lines = []
    for command in (["inspect", str(path)], ["build", str(path), str(tmp_path / "refused")]):
        with pytest.raises(SystemExit):
            main([*command, *words])
        lines.append(capsys.readouterr().err)
        assert lines[-1].count("\n") == 1
    assert lines[0] == lines[1]
    assert not (tmp_path / "refused" / "manifest.json").exists()
    return lines[0]


def decoded(out: Path) -> dict[str, np.ndarray]:
    """Member name -> pixels, of all shards."""
    import tarfile

    found = {}
    for path in out.glob("*-*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith(".cls"):
                    file = tar.extractfile(member)
                    assert file is not None
                    with Image.open(file) as image:
                        found[member.name] = np.asarray(image)
    return found


def test_metres_with_a_sky_of_1e10_are_stored_with_scale_and_invalid_value(tmp_path: Path) -> None:
    def metres(picture: np.ndarray, mask: np.ndarray) -> bytes:
        plane = picture[..., 0].astype(np.float32) / 4 + 1
        plane[mask > 0] = 1e10
        return depth_file(plane)

    manifest, out = built(tmp_path, files(JPEG, MASK, ("npy", metres)))
    role = manifest.roles["depth"]
    assert (role.scale, role.unit, role.max, role.invalid) == (256, None, None, 0)
    assert manifest.layout["depths"] == "256 steps to 1; 1e+10 is no depth"
    for name, plane in decoded(out).items():
        if ".depth." in name:
            picture, mask = scene(int(name[:3]))
            expected = np.where(mask > 0, 0, (picture[..., 0] / 4 + 1) * 256)
            assert (plane == expected).all()


def test_a_layout_file_says_what_depths_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def far(picture: np.ndarray, _: np.ndarray) -> bytes:
        return depth_file(picture[..., 0] * 4.5 + 0.25)

    source = files(JPEG, MASK, ("npy", far))
    assert "[depth] scale = 10" in refused(capsys, tmp_path, source)
    main(["inspect", str(pack(tmp_path / "y.zip", files(JPEG, MASK)))])
    rules = capsys.readouterr().out.replace(
        "mask = [", "depth = ['depth/(?P<n1>\\d+)\\.npy']\nmask = ["
    )
    layout = tmp_path / "layout.toml"
    layout.write_text(rules + "\n[depth]\nscale = 50\nunit = 'm'\nmax = 1200\n")
    manifest, out = built(tmp_path, source, "--layout", str(layout))
    role = manifest.roles["depth"]
    assert (role.scale, role.unit, role.max, role.invalid) == (50, "m", 1200, None)
    plane = decoded(out)["000.depth.png"]
    assert (plane == np.rint((scene(0)[0][..., 0] * 4.5 + 0.25) * 50)).all()
    main(["inspect", str(tmp_path / "x.zip"), "--layout", str(layout)])
    assert "[depth]\nscale = 50.0\nunit = 'm'\nmax = 1200.0\n" in capsys.readouterr().out


def test_a_later_depth_map_that_the_rule_does_not_fit_is_left_out_by_name(tmp_path: Path) -> None:
    source = {}
    for number in range(40):
        plane = np.full((SIDE, SIDE), 1 + number / 8, np.float32)
        plane[5:9, 5:9] = 300 if number == 39 else 2
        source[f"images/{number:03d}.jpg"] = JPEG[1](*scene(number))
        source[f"depth/{number:03d}.npy"] = depth_file(plane)
    manifest, out = built(tmp_path, source, "--max-bad", "0.1")
    assert manifest.rejected.count == 1
    line = json.loads((out / "rejected.jsonl").read_text())
    assert (line["member"], line["role"]) == ("depth/039.npy", "depth")
    assert line["reason"].startswith("depth of up to 300; at most 256 can be stored")


@pytest.mark.parametrize("command", ["build", "inspect"])
def test_depth_maps_in_colours_are_refused_before_a_shard_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    depth = ("jpg", lambda picture, _: encoded(picture[::-1], "JPEG"))
    source = pack(tmp_path / "x.zip", files(JPEG, depth=depth))
    with pytest.raises(SystemExit) as error:
        main([command, str(source), *([str(tmp_path / "out")] if command == "build" else [])])
    assert error.value.code == 1
    message = capsys.readouterr().err
    assert (
        "none of the 8 depth files looked at can be used: depth/000.jpg: a depth map in" in message
    )
    assert message.count("Error: ") == 1


def test_12_bit_pictures_are_scaled_and_recorded(tmp_path: Path) -> None:
    gray = ("png", lambda picture, _: encoded(picture[..., 0].astype(np.uint16) * 16 + 15))
    manifest, out = built(tmp_path, files(gray, MASK))
    assert manifest.layout["bits"] == {"fg_bg": 12}
    assert manifest.layout["converted"] == {"fg_bg: 12-bit PNG to PNG": COUNT}
    assert (decoded(out)["002.fg_bg.png"][..., 0] == scene(2)[0][..., 0]).all()


def test_a_png_states_its_significant_bits() -> None:
    data = encoded(np.zeros((4, 4), np.uint16))
    assert significant_bits(data) is None
    body = b"sBIT\x0c"
    assert significant_bits(data[:33] + b"\0\0\0\1" + body + b"crc?" + data[33:]) == 12


def turned(orientation: int, crop: int = SIDE) -> tuple[str, object]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return "jpg", lambda picture, _: encoded(picture[:crop], "JPEG", quality=95, exif=exif)


@pytest.mark.parametrize(("orientation", "crop"), [(6, 36), (8, 48), (3, 48), (2, 36)])
def test_masks_on_the_stored_pixels_are_turned_with_their_pictures(
    tmp_path: Path, orientation: int, crop: int
) -> None:
    mask = ("png", lambda _, mask: encoded(mask[:crop]))
    manifest, out = built(tmp_path, files(turned(orientation, crop), mask))
    assert manifest.layout["exif"] == {"mask": "on the stored pixels"}
    check_masks(out)


@pytest.mark.parametrize("orientation", [5, 7])
def test_masks_on_the_turned_pixels_stay(tmp_path: Path, orientation: int) -> None:
    shown = {5: lambda plane: plane.T, 7: lambda plane: plane[::-1, ::-1].T}[orientation]
    mask = ("png", lambda _, mask: encoded(np.ascontiguousarray(shown(mask))))
    manifest, out = built(tmp_path, files(turned(orientation), mask))
    assert manifest.layout["exif"] == {"mask": "on the turned pixels"}
    check_masks(out)


def check_masks(out: Path) -> None:
    """Every mask lies on the bright object of its picture."""
    members = decoded(out)
    assert len(members) == 2 * COUNT
    for name, mask in members.items():
        if ".mask." in name:
            picture = members[name.replace(".mask.", ".fg_bg.")]
            assert picture.shape[:2] == mask.shape
            bright = picture.max(axis=2) > 165
            assert (bright != (mask > 149)).mean() < 0.02


def test_turned_pictures_whose_masks_cannot_be_told_are_refused_naming_exif(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def centred(_: np.ndarray, mask: np.ndarray) -> bytes:
        plane = np.zeros_like(mask)
        plane[14:34, 14:34] = 255
        return encoded(plane)

    source = files(turned(6), ("png", centred))
    line = refused(capsys, tmp_path, source)
    assert "turned by EXIF (orientation 6)" in line
    assert "exif = 'stored' or 'turned' in a layout file" in line
    main(["inspect", str(pack(tmp_path / "y.zip", files(JPEG, MASK)))])
    layout = tmp_path / "layout.toml"
    layout.write_text("exif = 'stored'\n" + capsys.readouterr().out)
    manifest, _ = built(tmp_path, source, "--layout", str(layout))
    assert manifest.layout["exif"] == {"mask": "on the stored pixels"}


def test_masks_with_the_tag_of_their_pictures_raise_no_question(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = ("png", lambda _, mask: encoded(mask, exif=exif))
    manifest, out = built(tmp_path, files(turned(6), mask))
    assert "exif" not in manifest.layout
    check_masks(out)


def test_pointers_of_git_lfs_are_named_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize %d\n"
    source = files(JPEG, MASK)
    everything = {name: pointer % (number, number) for number, name in enumerate(source)}
    assert "Git LFS pointer" in refused(capsys, tmp_path, everything)
    masks = {
        name: everything[name] if name.startswith("masks") else data
        for name, data in source.items()
    }
    line = refused(capsys, tmp_path, masks)
    assert "8 of 16 files are Git LFS pointers" in line and "masks/000.png" in line
    with pytest.raises(SystemExit):
        main(["inspect", str(spread(tmp_path / "clone", everything))])
    assert "git lfs pull" in capsys.readouterr().err


def test_avif_named_jpg_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    avif = ("jpg", lambda picture, _: encoded(picture, "AVIF"))
    line = refused(capsys, tmp_path, files(avif, MASK))
    assert "images/000.jpg: AVIF named .jpg; rename it to .avif, or save it as JPG" in line
    manifest, _ = built(tmp_path, files(("avif", avif[1]), MASK))
    assert manifest.layout["converted"] == {"fg_bg: RGB AVIF to PNG": COUNT}


def test_a_pfm_written_upside_down_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pfm(rows: int) -> tuple[str, object]:
        def encode(_: np.ndarray, mask: np.ndarray) -> bytes:
            plane = np.where(mask > 0, 2, 5 + np.arange(SIDE)[:, None] / 9).astype("<f4")
            return f"Pf\n{SIDE} {SIDE}\n-1.0\n".encode() + plane[::rows].tobytes()

        return "pfm", encode

    line = refused(capsys, tmp_path, files(JPEG, MASK, pfm(1)))
    assert "depth/000.pfm: a PFM that lies upside down on its picture" in line
    manifest, out = built(tmp_path, files(JPEG, MASK, pfm(-1)))
    assert manifest.roles["depth"].scale == 256
    assert (decoded(out)["003.depth.png"][scene(3)[1] > 0] == 512).all()


def test_zeros_of_16_bit_maps_are_recorded_said_and_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recorded, warned of, out of the statistics and of the average of `--res`; or not, as told."""

    def holes(picture: np.ndarray, mask: np.ndarray) -> bytes:
        return encoded(np.where(mask > 0, np.uint16(0), 9000 + picture[..., 0].astype(np.uint16)))

    source = files(JPEG, MASK, ("png", holes))
    manifest, out = built(tmp_path, source)
    assert manifest.roles["depth"].invalid == 0
    assert manifest.layout["depths"] == "0 is no depth"
    share = 100 * 11 * 19 / SIDE**2
    (line,) = [each for each in manifest.layout["warnings"] if "no depth" in each]
    assert line.startswith(f'0 means "no depth": {share:.1f} % of the pixels')
    assert f"warning      {line}" in capsys.readouterr().out
    assert manifest.stats["depth"].mean[0] > 9000 / 65535
    main(["stats", str(out), "--json"])
    low, _ = json.loads(capsys.readouterr().out)["roles"]["depth"]["range"]
    assert low >= 9000 / 65535
    main(["report", str(out), "-o", str(tmp_path / "report.html")])
    assert "(magenta: no depth)" in (tmp_path / "report.html").read_text()
    capsys.readouterr()

    main(["inspect", str(tmp_path / "x.zip")])
    rules = capsys.readouterr().out
    assert "no depth" in rules
    layout = tmp_path / "layout.toml"
    layout.write_text(rules + "\n[depth]\ninvalid = false\n")
    arguments = ["build", str(tmp_path / "x.zip"), str(tmp_path / "all"), "--layout", str(layout)]
    main([*arguments, "--workers", "1"])
    complete = Manifest.load(tmp_path / "all")
    assert complete.roles["depth"].invalid is None
    assert complete.stats["depth"].mean[0] < 0.95 * manifest.stats["depth"].mean[0]
    assert (tmp_path / "all/train-00000.tar").read_bytes() == (out / "train-00000.tar").read_bytes()
    capsys.readouterr()
    main(["inspect", str(tmp_path / "x.zip"), "--layout", str(layout)])
    assert "[depth]\ninvalid = false\n" in capsys.readouterr().out

    arguments[2:] = [str(tmp_path / "small"), "--res", "12", "--workers", "1"]
    main(arguments)
    for name, plane in decoded(tmp_path / "small").items():
        if ".depth." in name:
            assert plane[plane > 0].min() >= 9000
            assert (plane == 0).any()


def test_invalid_of_a_layout_file_is_a_number_numbers_or_false(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = files(JPEG, MASK, ("png", lambda picture, _: encoded(picture[..., 0])))
    main(["inspect", str(pack(tmp_path / "x.zip", source))])
    rules = capsys.readouterr().out
    layout = tmp_path / "layout.toml"
    for text, invalid in (("0", 0), ("[0, 255]", 0), ("false", None)):
        layout.write_text(f"{rules}\n[depth]\ninvalid = {text}\n")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        manifest, _ = built(tmp_path, source, "--layout", str(layout))
        assert manifest.roles["depth"].invalid == invalid, text
        capsys.readouterr()
    layout.write_text(f"{rules}\n[depth]\ninvalid = true\n")
    assert "invalid (a number, several, or false)" in refused(
        capsys, tmp_path, source, "--layout", str(layout)
    )
