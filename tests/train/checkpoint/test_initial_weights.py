import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shardline_tiny_run import ONES, STATS, TinyNet
from torch import Tensor, nn

from model.losses import TARGETS
from model.registry import create
from train.checkpoint.checkpoint_file import save
from train.checkpoint.initial_weights import InitialWeights, locate
from train.checkpoint.trained_model import weights_metadata
from train.config import Config
from train.errors import CheckpointError, ConfigError
from train.settings import resolve, to_toml

Change = Callable[[dict[str, Tensor]], object]


def weights(
    path: Path, model: nn.Module, *, name: str = "resunet", roles: tuple[str, ...] = TARGETS,
    change: Change = lambda _: None,
) -> Path:  # fmt: skip
    """Write weights as a run on data with these target roles leaves them."""
    about = {"config": to_toml(resolve(Config(), {"model": name})), "res": 16, "step": 3}
    about |= {"mean": STATS, "std": ONES, "roles": ["bg", "fg_bg", *roles]}
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    change(tensors)
    save(path, tensors, weights_metadata(about))
    return path


def start(path: Path, *, partial: bool = False, make_model=TinyNet) -> tuple[nn.Module, list[str]]:
    config = locate(resolve(Config(), {"init": str(path), "init_partial": partial}))
    initial = InitialWeights(config, make_model, TARGETS)
    return initial.make("resunet"), initial.begun


def test_the_weights_of_the_file_are_those_of_the_new_network(tmp_path: Path) -> None:
    source = TinyNet("resunet")
    model, begun = start(weights(tmp_path / "w.safetensors", source))
    assert begun == []
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_the_settings_keep_the_path_and_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(tmp_path / "best.safetensors", TinyNet("resunet"))
    monkeypatch.chdir(tmp_path)
    config = locate(resolve(Config(), {"init": "."}))
    assert config.network.init == str(path)
    assert config.network.init_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert locate(config) == config
    other = replace(config, network=replace(config.network, init_sha256="0" * 64))
    with pytest.raises(CheckpointError, match="but --init-sha256 says 000"):
        locate(other)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--init .*none: cannot be read"):
        start(tmp_path / "none")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = weights(tmp_path / "w.safetensors", TinyNet("unet"), name="unet")
    with pytest.raises(ConfigError, match=r"weights of a unet, but .* a resunet; use --model unet"):
        start(path, partial=True)


def wider_head(tensors: dict[str, Tensor]) -> None:
    tensors["head.weight"] = torch.ones(5, 8, 1, 1)


@pytest.mark.parametrize("change", [wider_head, lambda tensors: tensors.pop("head.bias")])
def test_a_head_that_does_not_fit_begins_anew_only_on_request(
    tmp_path: Path, change: Change
) -> None:
    source = TinyNet("resunet")
    path = weights(tmp_path / "w.safetensors", source, change=change)
    with pytest.raises(ConfigError, match=r"head does not fit \(head\); --init-partial begins it"):
        start(path)
    model, begun = start(path, partial=True)
    assert begun == ["head"]
    for key, value in source.state_dict().items():
        if not key.startswith("head"):
            assert torch.equal(model.state_dict()[key], value), key


def test_a_body_that_does_not_fit_is_refused_always(tmp_path: Path) -> None:
    path = weights(
        tmp_path / "w.safetensors", TinyNet("resunet"), change=lambda t: t.pop("body.0.bias")
    )
    with pytest.raises(ConfigError, match=r"body\.0\.bias does not fit this network"):
        start(path, partial=True)


@pytest.mark.parametrize(("trained", "begun"), [("mask", "depth_head"), ("depth", "mask_head")])
def test_what_only_an_untrained_target_needs_begins_anew_only_on_request(
    tmp_path: Path, trained: str, begun: str
) -> None:
    source = create("resunet")
    path = weights(tmp_path / "w.safetensors", source, roles=(trained,))
    (missing,) = set(TARGETS) - {trained}
    with pytest.raises(ConfigError, match=rf"{missing} was not trained \(.*{begun}.*--init-part"):
        start(path, make_model=create)
    model, names = start(path, partial=True, make_model=create)
    assert begun in names
    own, old = model.state_dict(), source.state_dict()
    assert not torch.equal(own[f"{begun}.weight"], old[f"{begun}.weight"])
    assert torch.equal(own[f"{trained}_head.weight"], old[f"{trained}_head.weight"])
    assert torch.equal(own["init.weight"], old["init.weight"])
