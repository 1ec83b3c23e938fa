"""An index says where each member lies, in DALI's own words."""

import pytest

from shardify.dataset.index import Member, format_index, parse_index
from shardify.errors import VerifyError

SAMPLES = [
    [Member("fg_bg.jpg", 512, 5124, "k1.fg_bg.jpg"), Member("bg.cls", 6656, 5, "k1.bg.cls")],
    [Member("fg_bg.jpg", 7680, 1, "k2.fg_bg.jpg"), Member("bg.cls", 8704, 5, "k2.bg.cls")],
]
TEXT = (
    "v1.2 2\n"
    "fg_bg.jpg 512 5124 k1.fg_bg.jpg bg.cls 6656 5 k1.bg.cls\n"
    "fg_bg.jpg 7680 1 k2.fg_bg.jpg bg.cls 8704 5 k2.bg.cls\n"
)


def test_an_index_is_a_count_and_a_line_a_sample() -> None:
    assert format_index(SAMPLES) == TEXT


def test_an_index_reads_back_as_it_was() -> None:
    assert parse_index(TEXT) == SAMPLES


@pytest.mark.parametrize(
    "text",
    [
        "", "v1.1 2\n", TEXT[:-40], TEXT + "x", TEXT.replace("v1.2 2", "v1.2 3"),
        TEXT.replace(" 512 ", " here "), TEXT.replace(" 512 ", " "), "\x00" * 99,
    ],
)  # fmt: skip
def test_what_is_no_whole_index_is_refused(text: str) -> None:
    with pytest.raises(VerifyError):
        parse_index(text)
