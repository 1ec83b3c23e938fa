import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageFilter
from shardline_tiny_run import TinyNet, TinySource

from shardify.resolution import Resolution
from train.checkpoint import checkpoint_file
from train.checkpoint.trained_model import Trained, load_trained
from train.cli import main
from train.config import Config
from train.data import TargetFormat
from train.errors import CheckpointError, ConfigError, RunError
from train.evaluation.evaluate import evaluate_split
from train.inference.export import Deployed, export
from train.inference.predict import Predictor
from train.optim.criterion import make_criterion
from train.settings import resolve
from train.trainer.trainer import Trainer

CPU = torch.device("cpu")
EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"
SHAPES = [(1, 3, 32, 32), (3, 3, 48, 96), (2, 3, 128, 64)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run")
    values = {"out": str(out), "res": 16, "epochs": 3, "batch": 8, "lr": 0.1, "device": "cpu"}
    config = resolve(Config(), {**values, "panel_rows": 0, "tensorboard": False})
    Trainer(config, TinySource(64, 10), make_model=TinyNet).run()
    return out


def pictures(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def expected(trained: Trained, bg: torch.Tensor, fg_bg: torch.Tensor) -> list[np.ndarray]:
    """Mask and depth by the network itself, step by step."""
    mean = {role: torch.tensor(trained.mean[role]).view(1, 3, 1, 1) for role in trained.mean}
    std = {role: torch.tensor(trained.std[role]).view(1, 3, 1, 1) for role in trained.std}
    images = torch.cat(
        [(bg - mean["bg"]) / std["bg"], (fg_bg - mean["fg_bg"]) / std["fg_bg"]], dim=1
    )
    with torch.no_grad():
        prediction = trained.criterion.activate(trained.model(images))
    return [prediction.mask.numpy(), prediction.depth.numpy()]


def answers_alike(path: Path, trained: Trained, *, within: float) -> None:
    """onnxruntime's answers are the network's, at sizes and numbers it was not exported with."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        bg, fg_bg = pictures(shape)
        answers = session.run(["mask", "depth"], {"bg": bg.numpy(), "fg_bg": fg_bg.numpy()})
        for answer, want in zip(answers, expected(trained, bg, fg_bg), strict=True):
            assert answer.shape == (shape[0], 1, *shape[2:])
            np.testing.assert_allclose(answer, want, atol=within)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_example_for_onnx_runtime_gives_the_maps_of_predict(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(run, kind="onnx", out=tmp_path / "net.onnx", make_model=TinyNet)
    generator = np.random.default_rng(0)
    images = []
    for name, shape in (("bg", (150, 100, 3)), ("fg_bg", (170, 230, 3))):
        pixels = generator.integers(0, 256, shape).astype(np.uint8)
        images.append(np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))))
        Image.fromarray(images[-1]).save(tmp_path / f"{name}.png")
    script = EXAMPLES / "use_onnx.py"
    command = [sys.executable, script, "net.onnx", "bg.png", "fg_bg.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (maps,) = Predictor(load_trained(run, make_model=TinyNet), device=CPU)([tuple(images)])
    assert re.fullmatch(r"\d+\.\d% of the pixels are object\n", done.stdout)
    with Image.open(tmp_path / "depth.png") as image:
        assert np.abs(np.asarray(image) / 255 - maps.depth).max() < 1.5 / 255
    with Image.open(tmp_path / "mask.png") as image:
        assert (np.asarray(image) > 0).mean() == pytest.approx((maps.mask > 0.5).mean(), abs=0.01)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_answers_as_the_network_at_any_number_and_size(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    path = export(run, kind="onnx", out=tmp_path / "deep" / "net.onnx", make_model=TinyNet)
    answers_alike(path, load_trained(run, make_model=TinyNet), within=1e-5)
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_of_the_real_network_answers_as_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    from model.registry import create

    torch.manual_seed(0)
    config = resolve(Config(), {"model": "resunet"})
    three = [0.45, 0.44, 0.43], [0.2, 0.21, 0.22]
    trained = Trained(
        path=tmp_path / "best.safetensors", model=create("resunet").eval(),
        criterion=make_criterion(config.loss), res=Resolution(64, 64), step=0, config=config,
        mean={"bg": three[0], "fg_bg": three[0]}, std={"bg": three[1], "fg_bg": three[1]},
    )  # fmt: skip
    monkeypatch.setattr("train.inference.export.load_trained", lambda *_, **__: trained)
    # Untrained, its raw outputs are in the hundreds, and so are their rounding errors.
    answers_alike(export(tmp_path, kind="onnx"), trained, within=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_answers_as_the_network(run: Path, tmp_path: Path) -> None:
    path = export(run, kind="torchscript", out=tmp_path / "net.pt", make_model=TinyNet)
    network = torch.jit.load(str(path))
    trained = load_trained(run, make_model=TinyNet)
    for shape in SHAPES:
        bg, fg_bg = pictures(shape)
        for answer, want in zip(network(bg, fg_bg), expected(trained, bg, fg_bg), strict=True):
            np.testing.assert_allclose(answer.detach().numpy(), want, atol=1e-5)


def test_raw_outputs_are_bounded_where_there_is_no_sigmoid(run: Path) -> None:
    trained = load_trained(run, make_model=TinyNet)
    raw = trained._replace(criterion=make_criterion(resolve(Config(), {"activation": "none"}).loss))
    bg, fg_bg = pictures((2, 3, 32, 32))
    with torch.no_grad():
        answers = Deployed(raw).eval()(4 * bg, -4 * fg_bg)
    for answer, want in zip(answers, expected(raw, 4 * bg, -4 * fg_bg), strict=True):
        np.testing.assert_allclose(answer.numpy(), want, atol=1e-6)
        assert answer.min() >= 0 and answer.max() <= 1


def test_plain_weights_of_a_checkpoint_serve_like_the_checkpoint(run: Path, tmp_path: Path) -> None:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    path = export(newest, kind="safetensors", out=tmp_path / "w.safetensors", make_model=TinyNet)
    figures = [
        evaluate_split(
            load_trained(file, make_model=TinyNet), TinySource(64, 10), split="val", res=16,
            batch=4, device=CPU,
        )
        for file in (newest, path)
    ]  # fmt: skip
    assert figures[0] == figures[1]
    assert path.stat().st_size < newest.stat().st_size


def test_what_is_written_is_as_readable_as_any_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    checkpoint_file.write(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "x.safetensors")]
    assert modes[0] == modes[1]


def test_mistakes_end_in_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--format tflite: expected one of onnx"):
        export(run, kind="tflite", make_model=TinyNet)
    with pytest.raises(ConfigError, match="choose another --out"):
        export(run, kind="safetensors", make_model=TinyNet)
    with pytest.raises(CheckpointError, match=r"no best\.safetensors"):
        export(tmp_path, kind="onnx", make_model=TinyNet)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        export(run, kind="torchscript", out=tmp_path / "file" / "x.pt", make_model=TinyNet)
    result = CliRunner().invoke(main, ["export", str(tmp_path)])
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["torchscript", "safetensors"])
def test_a_file_that_cannot_be_written_is_one_line(run: Path, tmp_path: Path, kind: str) -> None:
    # Not even root may write where a folder stands.
    (tmp_path / ".net.tmp").mkdir()
    with pytest.raises(RunError, match="net: cannot be written"):
        export(run, kind=kind, out=tmp_path / "net", make_model=TinyNet)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_leaves_nothing_where_there_is_no_room(run: Path, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:  # Torch's own writer would end the process, and all tests with it.
        code = 1
        try:
            signal.alarm(60)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            export(run, kind="torchscript", out=tmp_path / "net.pt", make_model=TinyNet)
        except RunError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_an_exported_network_says_what_its_depth_is(run: Path, tmp_path: Path, kind: str) -> None:
    depth = TargetFormat(bits=16, unit="m", scale=256.0)
    trained = load_trained(run, make_model=TinyNet)._replace(formats={"depth": depth})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.inference.export.load_trained", lambda *_, **__: trained)
        path = export(run, kind=kind, out=tmp_path / "net")
    if kind == "torchscript":
        files = {"shardline.json": ""}
        torch.jit.load(str(path), _extra_files=files)
        about = json.loads(files["shardline.json"])
    else:
        runtime = pytest.importorskip("onnxruntime")
        about = json.loads(
            runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            .get_modelmeta()
            .custom_metadata_map["shardline"]
        )
    assert about == {"res": 16, "step": trained.step, "formats": {"depth": depth._asdict()}}
