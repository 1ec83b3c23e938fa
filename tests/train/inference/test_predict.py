import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from shardline_tiny_run import TinyNet, TinySource

from shardify.errors import DataError
from shardify.images.parser import parse
from shardify.images.pixels import STANDARD, pixels
from shardify.resolution import Resolution
from train.checkpoint.trained_model import Trained, load_trained
from train.config import Config
from train.data import TargetFormat
from train.distributed import World
from train.errors import CheckpointError, ConfigError
from train.evaluation.evaluate import evaluate_split
from train.evaluation.metrics import FIGURES
from train.inference import predict as module
from train.inference.export import export
from train.inference.input_pairs import InputPair, find_pairs
from train.inference.predict import COLORS, Predictor, predict, predict_files, read_image
from train.optim.compute import pick_device
from train.optim.criterion import make_criterion
from train.settings import resolve
from train.trainer.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at 16 and 32 px that has learnt a little."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run")
    values = {"out": str(out), "res": (16, 32), "epochs": (8, 4), "batch": 8, "lr": 0.1}
    config = resolve(Config(), {**values, "device": "cpu", "panel_rows": 0, "tensorboard": False})
    Trainer(config, TinySource(64, 10), make_model=TinyNet).run()
    return out


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.jpg: cannot be read as an image"):
        read_image(tmp_path / "x.jpg")


# Turned and scaled as `shardify build` stores such a picture.
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_16_bit_picture_is_scaled_as_in_a_shard(tmp_path: Path, name: str) -> None:
    ramp = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(16, 64)
    Image.fromarray(ramp).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    stored = pixels(data, parse(data), "fg_bg", STANDARD)
    found = read_image(tmp_path / name)
    assert np.array_equal(found, stored)
    assert len(np.unique(found)) == 256 and found[-1, -1].tolist() == [255] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_by_exif_as_in_a_shard(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    data = (tmp_path / "a.jpg").read_bytes()
    found = read_image(tmp_path / "a.jpg")
    assert found.shape == ((6, 4, 3) if orientation >= 5 else (4, 6, 3))
    assert np.array_equal(found, pixels(data, parse(data), "fg_bg", STANDARD))


def test_a_picture_of_floating_point_numbers_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif: .*floating-point.*expected 8 or 16 bits"):
        read_image(tmp_path / "f.tif")


class Echo(torch.nn.Module):
    """Says the red of the background as mask, the blue of the picture as depth."""

    def forward(self, x: torch.Tensor) -> object:
        from model.blocks import Prediction

        return Prediction(depth=x[:, 5:6], mask=x[:, 0:1])


def echo() -> Trained:
    config = resolve(Config(), {"activation": "none"})
    return Trained(
        path=Path("echo"), model=Echo(), criterion=make_criterion(config.loss),
        res=Resolution(16, 16),
        mean={"bg": [0.1, 0, 0], "fg_bg": [0, 0, 0.2]},
        std={"bg": [2.0, 1, 1], "fg_bg": [1, 1, 0.5]},
        config=config, step=0,
    )  # fmt: skip


def plain(height: int, width: int, rgb: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(rgb, np.uint8), (height, width, 3)).copy()


def test_maps_have_each_pictures_size_and_inputs_are_normalised_as_in_training() -> None:
    predictor = Predictor(echo(), device=CPU)
    pairs = [
        (plain(40, 30, (255, 0, 0)), plain(20, 50, (0, 0, 102))),
        (plain(9, 9, (153, 0, 0)), plain(7, 11, (0, 0, 255))),
    ]
    first, second = predictor(pairs)
    assert first.mask.shape == first.depth.shape == (20, 50)
    assert second.mask.shape == (7, 11)
    np.testing.assert_allclose(first.mask, (1 - 0.1) / 2, atol=1e-6)
    np.testing.assert_allclose(first.depth, (0.4 - 0.2) / 0.5, atol=1e-6)
    np.testing.assert_allclose(second.mask, (0.6 - 0.1) / 2, atol=1e-6)
    np.testing.assert_allclose(second.depth, 1.0, atol=1e-6)  # Clamped.


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (16, 65535)])
def test_files_are_written_at_the_pictures_size(tmp_path: Path, bits: int, top: int) -> None:
    for folder, name, rgb in (("bg", "b.png", (255, 0, 0)), ("fg", "x.png", (0, 0, 102))):
        (tmp_path / folder).mkdir()
        Image.fromarray(plain(12, 18, rgb)).save(tmp_path / folder / name)
    jobs = find_pairs(tmp_path / "bg", tmp_path / "fg")
    files = predict_files(Predictor(echo(), device=CPU), jobs, tmp_path / "out" / "deep", bits=bits)
    names = ["x_mask.png", "x_depth.png", "x_depth_color.png", "x_overlay.png"]
    assert [file.name for file in files] == names
    mask, depth, color, overlay = (np.asarray(Image.open(file)) for file in files)
    assert mask.shape == depth.shape == (12, 18) and overlay.shape == color.shape == (12, 18, 3)
    assert set(np.unique(mask)) == {0}  # 0.45 is below a half.
    assert abs(int(depth[0, 0]) - round(0.4 * top)) <= 1
    assert depth.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_allclose(overlay[0, 0], [57, 9, 88], atol=1.5)


def test_a_failure_leaves_no_empty_folder(tmp_path: Path) -> None:
    Image.fromarray(plain(12, 18, (1, 2, 3))).save(tmp_path / "b.png")
    (tmp_path / "x.png").write_bytes(b"no picture")
    jobs = [InputPair(tmp_path / "x.png", tmp_path / "b.png")]
    with pytest.raises(DataError, match=r"x\.png: cannot be read as an image"):
        predict_files(Predictor(echo(), device=CPU), jobs, tmp_path / "out" / "deep")
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.png", "x.png"):
        Image.fromarray(plain(12, 18, (1, 2, 3))).save(tmp_path / name)
    jobs, predictor = (
        [InputPair(tmp_path / "x.png", tmp_path / "b.png")],
        Predictor(echo(), device=CPU),
    )
    before = {file: file.read_bytes() for file in predict_files(predictor, jobs, tmp_path / "out")}
    save = Image.Image.save

    def full(image: Image.Image, path: Path, kind: str, **options: object) -> None:
        save(image, path, kind, **options)
        if "_depth" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=r"x_depth\.png: cannot be written"):
        predict_files(predictor, jobs, tmp_path / "out", bits=16)
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_what_stands_in_the_way_is_replaced_only_if_it_is_a_prediction(tmp_path: Path) -> None:
    for name in ("b.png", "x.png", "x_mask.png"):
        Image.fromarray(plain(12, 18, (1, 2, 3))).save(tmp_path / name)
    truth = (tmp_path / "x_mask.png").read_bytes()
    jobs, predictor = (
        [InputPair(tmp_path / "x.png", tmp_path / "b.png")],
        Predictor(echo(), device=CPU),
    )
    with pytest.raises(
        DataError, match=r"x_mask\.png: was not written by `train predict`; choose another"
    ):
        predict_files(predictor, jobs, tmp_path)
    assert (tmp_path / "x_mask.png").read_bytes() == truth
    assert not (tmp_path / "x_depth.png").exists()
    (tmp_path / "x_mask.png").unlink()
    assert predict_files(predictor, jobs, tmp_path) == predict_files(predictor, jobs, tmp_path)


def test_predictions_among_the_pictures_are_not_predicted_from(tmp_path: Path) -> None:
    for name in ("b.png", "fg/x.png", "fg/his_mask.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(plain(12, 18, (1, 2, 3))).save(tmp_path / name)
    (tmp_path / "fg" / "._x.png").write_bytes(b"what macOS leaves in archives")
    (tmp_path / "fg" / "folder.jpg").mkdir()
    for _ in range(2):
        jobs = find_pairs(tmp_path / "b.png", tmp_path / "fg")
        assert [job.fg_bg.name for job in jobs] == ["his_mask.png", "x.png"]
        predict_files(Predictor(echo(), device=CPU), jobs, tmp_path / "fg")


def test_a_predictor_takes_any_rgb_array_and_names_what_it_does_not_take() -> None:
    predictor = Predictor(echo(), device=CPU)
    picture = np.arange(12 * 18 * 3, dtype=np.uint8).reshape(12, 18, 3)
    assert predictor([]) == []
    (turned,) = predictor([(picture[..., ::-1], picture[::-1, :, ::-1])])
    (same,) = predictor([(picture[..., ::-1].copy(), picture[::-1, :, ::-1].copy())])
    assert np.array_equal(turned.depth, same.depth)
    for wrong in (picture / np.float32(255), picture[..., 0], picture[..., :2], picture[:0]):
        with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\), RGB"):
            predictor([(picture, wrong)])


def test_a_resolution_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="--res 100"):
        Predictor(echo(), device=CPU, res=100)


def test_a_run_predicts_the_object_where_it_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_trained", lambda path: load_trained(path, make_model=TinyNet))
    scene = np.full((60, 80, 3), 20, np.uint8)
    Image.fromarray(scene).save(tmp_path / "bg.png")
    scene[20:40, 30:50] = 255
    Image.fromarray(scene).save(tmp_path / "fg.png")
    files = predict(
        run, bg=tmp_path / "bg.png", fg_bg=tmp_path / "fg.png", out=tmp_path / "o", device="cpu"
    )
    mask = np.asarray(Image.open(files[0])) > 0
    assert mask[25:35, 35:45].mean() > 0.9
    assert mask[:15].mean() < 0.1


@pytest.mark.parametrize("which", ["", "last.safetensors", "checkpoints"])
def test_a_run_its_weights_and_its_checkpoints_all_serve(run: Path, which: str) -> None:
    path = run / which
    if which == "checkpoints":
        path = sorted(path.iterdir())[-1]
    trained = load_trained(path, make_model=TinyNet)
    assert trained.res == (32, 32) and not trained.model.training
    figures = evaluate_split(trained, TinySource(64, 10), split="val", res=32, batch=4, device=CPU)
    assert list(figures) == [*FIGURES, "samples"]
    assert figures["samples"] == 10


def test_judging_afterwards_gives_the_figures_of_the_run(run: Path) -> None:
    from train.tracking.metrics_log import MetricsLog

    record = MetricsLog(run / "metrics.jsonl").read()[-1]["val"]
    trained = load_trained(run / "last.safetensors", make_model=TinyNet)
    # Another batch size: no figure depends on it.
    figures = evaluate_split(trained, TinySource(64, 10), split="val", res=32, batch=3, device=CPU)
    for name in FIGURES:
        assert figures[name] == pytest.approx(record[name], rel=1e-4), name


def test_what_holds_no_usable_weights_is_refused(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match=r"no best\.safetensors or last\.safetensors"):
        load_trained(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_trained(tmp_path / "none.safetensors")
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not written by `train run`"):
        load_trained(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="weights do not fit"):
        load_trained(run)  # The real network by that name is another.


def test_a_split_without_samples_and_a_missing_gpu_are_refused(run: Path) -> None:
    trained = load_trained(run, make_model=TinyNet)
    with pytest.raises(DataError, match="split 'val': has no samples"):
        evaluate_split(trained, TinySource(64, 0), split="val", res=32, batch=4, device=CPU)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch finds no GPU"):
            pick_device("cuda", World())


def test_five_lines_of_python_predict(run: Path, tmp_path: Path) -> None:
    for name in ("bg.png", "fg_bg.png"):
        Image.fromarray(plain(30, 20, (9, 9, 9))).save(tmp_path / name)
    predictor = Predictor(load_trained(str(run), make_model=TinyNet))
    background, picture = (read_image(str(tmp_path / name)) for name in ("bg.png", "fg_bg.png"))
    (maps,) = predictor([(background, picture)])
    assert maps.mask.shape == maps.depth.shape == (30, 20)


MILLIMETRES = TargetFormat(bits=16, unit="m", scale=1000.0, max=None, invalid=0)


class Ramp(torch.nn.Module):
    """Predicts depths from 0 to 1, whatever it is shown."""

    def forward(self, x: torch.Tensor) -> object:
        from model.blocks import Prediction

        ramp = torch.linspace(0, 1, x.shape[-1]).expand(len(x), 1, *x.shape[-2:])
        return Prediction(depth=ramp, mask=ramp)


def predicted(tmp_path: Path, trained: Trained, **options: int) -> dict[str, Image.Image]:
    Image.fromarray(plain(16, 16, (1, 2, 3))).save(tmp_path / "x.png")
    jobs = [InputPair(tmp_path / "x.png", tmp_path / "x.png")]
    files = predict_files(Predictor(trained, device=CPU), jobs, tmp_path / "out", **options)
    found = {}
    for file in files:
        with Image.open(file) as image:
            image.load()
            found[file.stem.removeprefix("x_")] = image
    return found


def test_depth_has_the_bits_and_the_scale_of_the_training_data(tmp_path: Path) -> None:
    trained = echo()._replace(model=Ramp(), formats={"depth": MILLIMETRES})
    found = predicted(tmp_path, trained)
    steps = np.asarray(found["depth"])
    assert steps.dtype == np.uint16
    # 0 means "no depth" in these data: a prediction is at least one step.
    expected = np.maximum(np.rint(np.linspace(0, 1, 16) * 65535), 1)
    assert np.abs(steps[0].astype(int) - expected).max() <= 1 and steps.min() == 1
    assert found["depth"].info["Depth"] == "1000 steps to 1 m"
    narrow = predicted(tmp_path, trained, bits=8)
    assert np.asarray(narrow["depth"]).dtype == np.uint8 and "Depth" not in narrow["depth"].info
    assert np.asarray(narrow["depth"]).min() == 0


def test_depth_of_weights_that_do_not_know_their_data_has_8_bits(tmp_path: Path) -> None:
    found = predicted(tmp_path, echo()._replace(model=Ramp()))
    steps = np.asarray(found["depth"])
    assert steps.dtype == np.uint8 and (steps.min(), steps.max()) == (0, 255)
    assert "Depth" not in found["depth"].info


def test_coloured_depth_goes_from_the_smallest_to_the_largest_value(tmp_path: Path) -> None:
    color = np.asarray(predicted(tmp_path, echo()._replace(model=Ramp()))["depth_color"])
    assert color[0, 0].tolist() == list(COLORS[0]) and color[0, -1].tolist() == list(COLORS[-1])
    brightness = color[0].astype(int).sum(1)
    assert (np.diff(brightness) > 0).all()
    flat = np.asarray(predicted(tmp_path, echo())["depth_color"])
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1


class SixteenBits(TinySource):
    formats = {"depth": MILLIMETRES}  # noqa: RUF012


@pytest.mark.parametrize("which", ["", "checkpoints", "exported"])
def test_a_run_knows_how_its_data_store_depth(tmp_path: Path, which: str) -> None:
    values = {"out": str(tmp_path / "run"), "res": 16, "epochs": 1, "batch": 8, "device": "cpu"}
    config = resolve(Config(), {**values, "panel_rows": 0, "tensorboard": False})
    Trainer(config, SixteenBits(16, 4), make_model=TinyNet).run()
    path = tmp_path / "run" / which
    if which == "checkpoints":
        path = sorted(path.iterdir())[-1]
    if which == "exported":
        path = export(
            tmp_path / "run", kind="safetensors", out=tmp_path / "w.safetensors",
            make_model=TinyNet,
        )  # fmt: skip
    assert load_trained(path, make_model=TinyNet).formats == {"depth": MILLIMETRES}


def test_weights_of_before_are_read_and_a_wrong_format_is_refused(
    run: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    weights = load_file(run / "best.safetensors")
    with safe_open(run / "best.safetensors", "pt") as file:
        about = json.loads(file.metadata()["shardline"])
    assert about.pop("formats") == {}
    path = tmp_path / "w.safetensors"
    save_file(weights, path, {"shardline": json.dumps(about)})
    assert load_trained(path, make_model=TinyNet).formats == {}
    for wrong in (7, {"depth": {"bits": 16}}, {"depth": {**MILLIMETRES._asdict(), "bits": 12}}):
        save_file(weights, path, {"shardline": json.dumps({**about, "formats": wrong})})
        with pytest.raises(CheckpointError, match="no valid formats"):
            load_trained(path, make_model=TinyNet)
