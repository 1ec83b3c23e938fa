"""The documentation says what the commands do today."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardify import Augmentation
from shardify.dataset.manifest import DIGEST, Manifest
from shardify.synth.generate import generate

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> Any:
    """One of docs/*.py, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


make_commands = script("make_commands")
make_schema = script("make_schema")
make_full_size = script("make_full_size")
make_training = script("make_training")

COMMANDS = list(make_commands.commands())
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_commands_page_is_what_the_commands_print() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert page == make_commands.render(), "docs/commands.md is out of date: run `make docs`"


def test_the_manifests_schema_is_that_of_its_dataclasses() -> None:
    text = make_schema.FILE.read_text()
    assert text == make_schema.render(), "docs/manifest.schema.json is out of date: run `make docs`"
    manifest = json.loads(text)["$defs"]["Manifest"]
    known = {spec.name for spec in dataclasses.fields(Manifest)} | {DIGEST}
    assert set(manifest["properties"]) == known
    needed = {"version", "created_by", "source", "options", "layout", "roles", "backgrounds"}
    assert set(manifest["required"]) == needed | {"splits"}


@pytest.mark.parametrize(("name", "context"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_has_help_and_an_example(name: str, context: object) -> None:
    text = context.get_help()  # type: ignore[attr-defined]
    described = text.split("\n\n")[1].strip()
    assert described, f"{name} has no help"
    if " " in name:
        assert f"{name} " in text.split("Options:")[0].split("\n", 1)[1], f"{name}: no example"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target} is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_call_only_commands_that_exist(page: Path) -> None:
    names = {name for name, _ in COMMANDS}
    for line in re.findall(r"^(?:\$ )?((?:shardify|train) [a-z]+)\b", page.read_text(), re.M):
        assert line in names, f"{page.name}: `{line}` is no command"


def test_the_architecture_page_names_every_package_and_no_file_that_is_gone() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("shardify", "train")
        for path in (ROOT / name).glob("*/__init__.py")
    } | {"model"}
    assert set(re.findall(r"^\| `([\w.]+)` \|", page, re.M)) == packages
    paths = re.findall(r"(?:shardify|train|model|tests)/[\w/]+(?:\.py|/(?=[`)]))", page)
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_readmes_python_is_strictly_typed(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGES[0].read_text(), re.M | re.S)
    assert len(blocks) == PAGES[0].read_text().count("```python") >= 2
    example = tmp_path / "readme.py"
    example.write_text("\n".join(blocks))
    # From ROOT, so that mypy's cache of `make types` serves here too.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(example)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_training_page_shows_the_figures_that_were_measured() -> None:
    page, figures = make_training.PAGE.read_text(), json.loads(make_training.FIGURES.read_text())
    assert page == make_training.render(page, figures), "run `python docs/make_training.py`"


def test_the_full_size_page_shows_the_figures_that_were_measured() -> None:
    page, figures = make_full_size.PAGE.read_text(), make_full_size.FIGURES.read_text()
    assert page == make_full_size.render(json.loads(figures)), "run `python docs/make_full_size.py`"


def test_a_survey_is_taken_apart_into_what_its_parts_take(tmp_path: Path) -> None:
    source = tmp_path / "x.zip"
    generate(source, samples=12, backgrounds=3, size=32, seed=0, workers=1)
    found = make_full_size.survey_parts(source)
    assert 0 < found["join"] < found["assign_roles"] < found["survey"]


def test_every_table_of_the_training_page_holds_a_default_that_was_measured() -> None:
    figures = json.loads(make_training.FIGURES.read_text())
    for name, rows in make_training.TABLES.items():
        default = [row for row in rows if row.label.startswith("**")]
        assert len(default) == 1, name
        angle = make_training.ANGLES[name]
        assert "not run" not in make_training.table(figures, default, make_training.SHORT, angle)


def test_a_table_shows_runs_of_its_own_angle_alone() -> None:
    row = make_training.Row("**SGD, plateau, EMA 0.98**", "--ema 0.98")
    figures = {
        "photos": {
            make_training.run_name(make_training.SHORT, row.flags, 0, angle): {
                "epochs": [{"mask_iou": angle / 100, "depth_rmse": angle / 1000}]
            }
            for angle in (10.0, 20.0)
        }
    }
    for angle, cells in ((10.0, "0.100 | 0.0100"), (20.0, "0.200 | 0.0200")):
        table = make_training.table(figures, [row], make_training.SHORT, angle).splitlines()
        assert table[0].startswith(f"| rotation ±{angle:g}° |")
        assert table[2] == f"| {row.label} | {cells} |"


def test_only_tables_of_todays_angle_are_trained() -> None:
    for name in make_training.wanted():
        assert name.endswith(f"_a{Augmentation().angle:g}")
    assert (
        make_training.run_name(make_training.SHORT, "--loss bce", 0, 20.0) == "e1_loss-bce_s0_a20"
    )
    assert "e1_loss-bce_s0_a10" not in make_training.wanted()
