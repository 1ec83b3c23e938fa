"""Layout files: patterns, a background rule, a map; what they say wrongly is named."""

from pathlib import Path

import pytest

from shardify.errors import LayoutError
from shardify.layout import detect as layout
from shardify.layout import layout_file
from shardify.layout.layout_file_writer import to_toml

TWO = "[roles]\nfg_bg = ['i/(?P<n>\\d+)\\.jpg']\nmask = ['m/(?P<n>\\d+)\\.png']\n"


def names(count: int = 5) -> list[str]:
    return [place % n for n in range(count) for place in ("i/%03d.jpg", "m/%03d.png")]


def detect(text: str, found: list[str]) -> layout.Layout:
    told = layout_file.parse(text, where="layout.toml")
    return layout.detect(found, where="data.zip", layout=told)


def test_patterns_bring_together_what_no_word_tells() -> None:
    found = detect(TWO, [*names(), "notes.txt"])
    assert found.roles == ("fg_bg", "mask")
    assert found.keys == ["000", "001", "002", "003", "004"]
    assert found.description["ignored"] == {"no pattern matches": 1}


@pytest.mark.parametrize(
    ("value", "rule"),
    [("15", "level 15"), ("0", "level 0"), ("'alpha'", "alpha"), ("'nonzero'", "nonzero")],
)
def test_a_layout_file_gives_the_rule_of_the_masks(value: str, rule: str) -> None:
    told = layout_file.parse(f"{TWO}[mask]\nobject = {value}\n", where="layout.toml")
    assert told.mask == rule
    text = to_toml(detect(TWO, names()), names(), mask_rule=rule)
    assert layout_file.parse(text, where="again").mask == rule


@pytest.mark.parametrize("mask", ["object = -1", "object = true", "object = 'red'", "value = 1"])
def test_a_mask_rule_that_is_not_understood_is_named(mask: str) -> None:
    with pytest.raises(LayoutError, match=r"layout.toml: \[mask\] .* is not understood"):
        layout_file.parse(f"{TWO}[mask]\n{mask}\n", where="layout.toml")


def test_numbers_are_equal_whatever_their_padding() -> None:
    assert len(detect(TWO, ["i/7.jpg", "m/0007.png", "i/8.jpg", "m/08.png"]).keys) == 2


def test_a_group_named_split_is_the_split() -> None:
    text = TWO.replace("i/", "i/(?P<split>[a-z]+)/").replace("m/", "m/[a-z]+/")
    found = detect(text, ["i/train/1.jpg", "m/train/1.png", "i/val/2.jpg", "m/val/2.png"])
    assert found.split is not None
    assert found.split.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("rule = 'number'\nnumber = 'n'\noffset = 1", ["b1", "b2", "b10", "b11"]),
        ("rule = 'order'\nnumber = 'n'\norder = 'lexicographic'", ["b1", "b10", "b11", "b2"]),
        ("rule = 'order'\nnumber = 'n'\norder = 'natural'", ["b1", "b2", "b10", "b11"]),
        ("rule = 'block'\nnumber = 'n'\nsize = 2", ["b1", "b1", "b2", "b2"]),
        ("rule = 'modulo'\nnumber = 'n'", ["b1", "b2", "b10", "b11"]),
        ("rule = 'none'", []),
    ],
)
def test_each_background_rule_counts_as_it_says(rule: str, expected: list[str]) -> None:
    text = TWO.replace("[roles]", "[roles]\nbg = ['b/b(?P<bg>\\d+)\\.jpg']")
    backs = ["b/b1.jpg", "b/b2.jpg", "b/b10.jpg", "b/b11.jpg"]
    if "offset" in rule:
        samples = [f"{role}/{n}.{kind}" for n in (0, 1, 9, 10)
                   for role, kind in (("i", "jpg"), ("m", "png"))]  # fmt: skip
    else:
        samples = names(4)
    found = detect(f"{text}[background]\n{rule}\n", backs + samples)
    by_number = sorted(range(len(found.keys)), key=lambda row: int(found.keys[row]))
    if expected:
        assert [found.background_ids[found.background[row]] for row in by_number] == expected
    else:
        assert found.roles == ("fg_bg", "mask")


def test_a_map_beside_the_layout_file_tells_backgrounds_and_companions(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("b/x.jpg,i/q.jpg,m/z.png\r\nb/y.jpg,i/r.jpg,m/w.png\r\n")
    (tmp_path / "layout.toml").write_text(
        "join = 'map'\nmap = 'pairs.csv'\n[roles]\nbg = ['b/.*']\nfg_bg = ['i/.*']\n"
        "mask = ['m/.*']\n[background]\nrule = 'map'\n"
    )
    told = layout_file.load(tmp_path / "layout.toml")
    files = ["m/w.png", "m/z.png", "b/x.jpg", "b/y.jpg", "i/q.jpg", "i/r.jpg"]
    found = layout.detect(files, where="data.zip", layout=told)
    assert found.keys == ["q", "r"]
    assert [files[index] for index in found.members["mask"]] == ["m/z.png", "m/w.png"]
    assert [found.background_ids[row] for row in found.background] == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("roles = [", "not TOML"),
        ("", r"no \[roles\]"),
        ("[roles]\nfg_bg = ['a']", "patterns for fg_bg; expected fg_bg, and mask"),
        ("[roles]\nfg_bg = ['(']\nmask = ['b']", "a pattern of fg_bg is no regular expression"),
        ("[roles]\nphoto = ['a']", r"roles\.photo is not understood"),
        (
            TWO + "[background]\nrule = 'guess'",
            "background.rule is 'guess'; expected one of",
        ),
        (TWO + "[background]\nrule = 'block'", "rule block needs a size"),
        (TWO + "[background]\nrule = 'none'\nsiz = 3", "background.siz = 3 is not understood"),
        (TWO + "[background]\nrule = 'map'", "a map is asked for"),
        (TWO + "[extra]\n", "extra means nothing"),
    ],
)
def test_what_a_layout_file_says_wrongly_is_named(text: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message) as caught:
        layout_file.parse(text, where="layout.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TWO.replace("i/(", "x/("), "nothing matches the patterns of fg_bg"),
        (TWO.replace("(?P<n>\\d+)\\.png", "\\d+\\.png"), "share no named group"),
        (
            TWO.replace("[roles]", "[roles]\nbg = ['i/000.jpg']"),
            r"background rule \(number\) does not give every sample one of 1 backgrounds",
        ),
    ],
)
def test_what_does_not_fit_the_source_is_named(text: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        detect(text, names())


def test_a_missing_layout_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"absent.toml: cannot be read \(No such file"):
        layout_file.load(tmp_path / "absent.toml")
