"""The page stands alone, and shows what is in the data set."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from shardline_browser import screenshot

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.dataset.manifest import Manifest
from shardify.dataset.report import outlined, page, write_report
from shardify.errors import OutputError
from shardify.synth.generate import generate


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    generate(folder / "x<&>.zip", samples=40, backgrounds=4, size=32, seed=0)
    build([folder / "x<&>.zip"], folder / "out", BuildOptions(val=0.25, workers=1))
    return folder / "out"


class Checker(HTMLParser):
    """Counts what is open, and collects every address."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_no_other_file_and_runs_nothing(built: Path) -> None:
    checker = Checker()
    checker.feed(page(built))
    assert checker.addresses
    assert all(address.startswith("data:image/") for address in checker.addresses)
    assert not {"script", "link", "iframe", "object"} & set(checker.tags)
    assert checker.tags.count("figure") == 20
    assert checker.tags.count("img") == 3 * 20


def test_names_from_the_source_cannot_become_markup(built: Path) -> None:
    text = page(built)
    assert "x&lt;&amp;&gt;.zip" in text
    assert "x<&>" not in text


def test_the_page_tells_samples_backgrounds_and_sizes(built: Path) -> None:
    text = page(built)
    manifest = Manifest.load(built)
    for background in manifest.backgrounds:
        assert f"<title>{background.id}: 10</title>" in text
    assert "30 samples in" in text
    assert "32x32 (40)" in text
    assert "in both splits</th><td>none</td>" in text
    assert "Nothing: every sample is in the shards." in text


def test_what_was_left_out_is_listed(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "out")
    document = (tmp_path / "out" / "manifest.json").read_text()
    document = re.sub(
        r'"rejected": \{[^}]*\}\s*\}',
        '"rejected": {"count": 1, "by_reason": {"bad CRC": 1}}',
        document,
    )
    (tmp_path / "out" / "manifest.json").write_text(document)
    (tmp_path / "out" / "rejected.jsonl").write_text(
        '{"key": "some_key", "member": "a.jpg", "role": "mask", "reason": "bad CRC"}\n'
    )
    text = page(tmp_path / "out")
    assert "some_key" in text
    assert "mask bad CRC" in text


def test_an_outline_is_the_border_of_the_mask_alone() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 255
    drawn = outlined(np.zeros((9, 9, 3), np.uint8), mask)
    marked = (drawn == (255, 0, 255)).all(axis=2)
    assert marked.sum() == 16
    assert marked[2, 2:7].all()
    assert not marked[3:6, 3:6].any()


def test_a_page_is_written_whole_or_refused(built: Path, tmp_path: Path) -> None:
    write_report(built, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text().endswith("</html>\n")
    assert [each.name for each in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(OutputError, match="a folder"):
        write_report(built, tmp_path)
    with pytest.raises(OutputError, match="choose another place"):
        write_report(built, tmp_path / "nowhere" / "r.html")


def test_a_browser_shows_the_page(built: Path, tmp_path: Path) -> None:
    write_report(built, tmp_path / "r.html")
    shown = screenshot(tmp_path / "r.html", tmp_path, height=1400)
    assert (shown == 255).all(axis=2).mean() < 0.95
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 1000
