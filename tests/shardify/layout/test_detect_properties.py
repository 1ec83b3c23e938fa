"""Laws that hold for any names at all: nothing is lost unsaid, and order tells nothing."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardify.errors import LayoutError
from shardify.layout import detect, layout_file, layout_file_writer

KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")

ROLE_SETS = st.frozensets(st.sampled_from(["fg_bg", "mask", "depth"]), min_size=1)


def name_of(role: str, number: int, extension: str = "png") -> str:
    return {
        "fg_bg": f"set/fg_bg/bg_{number % 3}/x_bg_{number % 3}_{number}.{extension}",
        "mask": f"set/mask/bg_{number % 3}/mask_x_bg_{number % 3}_{number}.{extension}",
        "depth": f"set/depth/bg_{number % 3}/x_bg_{number % 3}_{number}_depth.{extension}",
    }[role]


BACKS = [f"set/bg/bg{number}.jpg" for number in range(3)]


def meaning(found: detect.Layout, names: list[str]) -> object:
    """A layout without its indexes."""
    return (
        found.keys,
        found.roles,
        {role: [names[index] for index in column] for role, column in found.members.items()},
        [found.background_ids[number] for number in found.background],
        [names[index] for index in found.background_members],
        found.rejected,
        found.unused,
        found.description,
    )


@settings(deadline=None, max_examples=60)
@given(
    present=st.dictionaries(st.integers(0, 400), ROLE_SETS, max_size=25),
    twice=st.sets(st.tuples(st.integers(0, 400), st.sampled_from(["mask", "depth"])), max_size=3),
    seed=st.integers(0, 9),
)
def test_every_sample_is_kept_whole_or_named_with_a_reason(
    present: dict[int, frozenset[str]], twice: set[tuple[int, str]], seed: int
) -> None:
    whole = {500 + n for n in range(30)}
    files = {n: set(roles) for n, roles in present.items()} | {
        n: {"fg_bg", "mask", "depth"} for n in whole
    }
    names = [*BACKS, *(name_of(role, n) for n, roles in files.items() for role in roles)]
    doubled = {(n, role) for n, role in twice if role in files.get(n, ())}
    names += [name_of(role, n, "bmp") for n, role in doubled]
    random.Random(seed).shuffle(names)
    found = detect.detect(names, where="x")

    kept = {int(key.rpartition("_")[2]) for key in found.keys}
    lost = {int(re.findall(r"\d+", each.member)[-1]) for each in (*found.rejected, *found.unused)}
    assert kept == {
        n
        for n, roles in files.items()
        if len(roles) == 3 and not any((n, role) in doubled for role in roles)
    }
    assert kept | lost == set(files)
    assert not kept & lost
    assert len(found.rejected) == len({n for n in lost if "fg_bg" in files[n]})
    assert {names.index(each.member) for each in found.unused} == {
        names.index(name_of(role, n, extension))
        for n, roles in files.items()
        if "fg_bg" not in roles
        for role in roles
        for extension in ("png", *(["bmp"] if (n, role) in doubled else []))
    }
    assert len(set(found.keys)) == len(found.keys)
    for row, key in enumerate(found.keys):
        number = int(key.rpartition("_")[2])
        for role, column in found.members.items():
            assert names[column[row]] == name_of(role, number)
        assert found.background_ids[found.background[row]] == f"bg{number % 3}"


@settings(deadline=None, max_examples=40)
@given(
    present=st.dictionaries(st.integers(0, 99), ROLE_SETS, min_size=1, max_size=20),
    junk=st.lists(st.text(max_size=20), max_size=4),
    seed=st.integers(0, 9),
)
def test_the_order_of_the_names_means_nothing(
    present: dict[int, frozenset[str]], junk: list[str], seed: int
) -> None:
    names = [*BACKS, *(name_of(role, n) for n, roles in present.items() for role in roles)]
    names += [f"notes/{text}.md" for text in junk]
    names += [name_of(role, n) for n in (700, 701) for role in ("fg_bg", "mask", "depth")]
    other = random.Random(seed).sample(names, len(names))
    assert meaning(detect.detect(names, where="x"), names) == meaning(
        detect.detect(other, where="x"), other
    )


PART = st.one_of(
    st.sampled_from(["fg_bg", "mask", "depth", "bg", "images", "train", "val", "test", "a", "1"]),
    st.text(min_size=1, max_size=8),
)
NAME = st.builds(
    lambda parts, stem, extension: "/".join([*parts, f"{stem}.{extension}"]),
    st.lists(PART, max_size=3),
    PART,
    st.sampled_from(["jpg", "png", "npy", "txt", "JPG"]),
)


@settings(deadline=None, max_examples=60)
@given(names=st.lists(NAME, max_size=30, unique=True))
def test_any_names_give_a_layout_or_one_clear_line(names: list[str]) -> None:
    try:
        found = detect.detect(names, where="x")
    except LayoutError as error:
        assert str(error).startswith("x: ")
        return
    assert all(KEY.fullmatch(key) for key in (*found.keys, *found.background_ids))
    assert len(set(found.keys)) == len(found.keys)
    layout_file.parse(layout_file_writer.to_toml(found, names), where="layout.toml")


@pytest.mark.parametrize("odd", ["9" * 6000, "\u00b2", "\u0663", "a\u00b22", "0" * 300, "\udcff"])
def test_odd_digits_are_no_trap(odd: str) -> None:
    names = [f"bg/bg{odd}.jpg", "bg/bg1.jpg"]
    names += [f"{role}/x_bg_{odd}_{n}.png" for n in (1, 2) for role in ("fg_bg", "mask")]
    try:
        found = detect.detect(names, where="x")
    except LayoutError:
        return
    assert len(found.keys) == 2
    assert found.background_ids != ["bg1"]
    layout_file.parse(layout_file_writer.to_toml(found, names), where="layout.toml")


@settings(deadline=None, max_examples=200)
@given(stems=st.lists(st.text(min_size=1, max_size=120), min_size=1, max_size=20, unique=True))
def test_keys_are_plain_unique_and_short_whatever_the_names(stems: list[str]) -> None:
    plain = [stem.replace("/", "!") for stem in stems]
    names = [
        f"{role}/d{n}/{stem}.png" for n, stem in enumerate(plain) for role in ("fg_bg", "mask")
    ]
    try:
        found = detect.detect(names, where="x")
    except LayoutError:
        return
    assert all(KEY.fullmatch(key) for key in found.keys)
    assert len(set(found.keys)) == len(found.keys)


@settings(deadline=None, max_examples=100)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.builds(
            "[roles]\nfg_bg = ['{}']\nmask = ['{}']\n[background]\nrule = '{}'\n{} = {}\n".format,
            st.text("(?P<n>\\d+)[]*.a", max_size=12),
            st.text("(?P<n>\\d+)[]*.a", max_size=12),
            st.sampled_from(["number", "order", "block", "map", "none", "else"]),
            st.sampled_from(["size", "first", "order", "check", "what"]),
            st.sampled_from(["1", "0", "'natural'", "true", "[]"]),
        ),
    )
)
def test_any_layout_file_is_understood_or_refused_in_one_line(text: str) -> None:
    try:
        told = layout_file.parse(text, where="layout.toml")
    except LayoutError as error:
        assert str(error).startswith("layout.toml: ")
        return
    assert "fg_bg" in told.patterns
