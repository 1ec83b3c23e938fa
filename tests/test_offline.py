"""What the suite starts, on a machine that has but the packages docs/gpu.md names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shardline_offline import THERE, offline

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = (
    "isal deflate fsspec s3fs distributed dask moto tensorboard pynvml onnx hypothesis xdist"
).split()


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return offline(tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def source(tmp_path_factory, environment) -> Path:
    path = tmp_path_factory.mktemp("synth") / "data.zip"
    python(environment, "-m", "shardify", "synth", path, "--samples", 20, "--backgrounds", 4)
    return path


def python(environment: dict[str, str], *words: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def digests(out: Path) -> list[str]:
    document = json.loads((out / "manifest.json").read_text())
    return [shard["sha256"] for split in document["splits"].values() for shard in split["shards"]]


def test_what_is_not_there_cannot_be_imported(environment) -> None:
    assert not set(ELSEWHERE) & set(THERE)
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError: pass\n"
        "    else: sys.exit(name)\n"
    )
    python(environment, "-c", code, *ELSEWHERE)


def test_shards_built_there_are_the_same_to_the_byte(environment, source, tmp_path) -> None:
    build([source], tmp_path / "here", BuildOptions(val=0.2))
    python(environment, "-m", "shardify", "build", source, tmp_path / "there", "--val", 0.2)
    assert digests(tmp_path / "there") == digests(tmp_path / "here") != []
    said = json.loads((tmp_path / "there" / "manifest.json").read_text())["created_by"]
    assert said == json.loads((tmp_path / "here" / "manifest.json").read_text())["created_by"]


@pytest.mark.slow
def test_a_run_there_goes_on_without_tensorboard(environment, source, tmp_path) -> None:
    data = tmp_path / "data"
    python(environment, "-m", "shardify", "build", source, data, "--val", 0.2)
    said = python(
        environment, "-m", "train", "run", "--shards", data, "--res", 16, "--batch", 4,
        "--max-steps", 2, "--threads", 1, "--torch-threads", 1, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "TensorBoard is not installed" in said
    assert (tmp_path / "run" / "last.safetensors").is_file()


def test_the_tests_of_a_gpu_are_found_there_by_a_pytest_without_plugins(environment) -> None:
    said = python(
        {**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, "-m", "pytest", "-q",
        "-c", ROOT / "tests" / "gpu.ini", "-m", "gpu", "--collect-only",
        *sorted((ROOT / "tests" / "gpu").glob("test_*.py")),
    )  # fmt: skip
    assert "test_the_jpeg_engine_decodes_baseline_jpegs" in said
