"""The documentation says what the commands do today."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("make_commands", ROOT / "docs" / "make_commands.py")
assert spec and spec.loader
make_commands = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_commands)

COMMANDS = list(make_commands.commands())
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_commands_page_is_what_the_commands_print() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert page == make_commands.render(), "docs/commands.md is out of date: run `make docs`"


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
