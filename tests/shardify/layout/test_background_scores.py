"""Pixels outside the mask say which background a composite has, or that they cannot say."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from shardify.errors import EntryError
from shardify.layout import background_scores, thumbnails

Bytes = npt.NDArray[np.uint8]


def png(pixels: Bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class World:
    """Six backgrounds of 80 x 50 pixels and thirty composites of 40 x 40 on them."""

    def __init__(self, *, cut: bool = False, masked: float = 0.3, ones: bool = False) -> None:
        rng = np.random.default_rng(1)
        grids = rng.integers(0, 256, (6, 5, 8, 3), np.uint8)
        backs = [Image.fromarray(each).resize((80, 50), Image.Resampling.BICUBIC) for each in grids]
        self.data = {100 + n: png(np.asarray(each)) for n, each in enumerate(backs)}
        self.truth = np.arange(30, dtype=np.int32) % 6
        self.reads: list[int] = []
        for row, back in enumerate(self.truth.tolist()):
            picture = backs[back].crop((15, 0, 65, 50)) if cut else backs[back]
            front = np.asarray(picture.resize((40, 40))).copy()
            mask = np.zeros((40, 40), np.uint8)
            mask[: int(40 * masked)] = 1 if ones else 255
            front[mask > 0] = 7
            self.data[row], self.data[50 + row] = png(front), png(mask)

    def read(self, index: int) -> bytes:
        self.reads.append(index)
        return self.data[index]

    def score(self, *candidates: npt.NDArray[np.int32]) -> background_scores.Scores:
        rows = np.arange(30, dtype=np.int32)
        steps = background_scores.score_steps(
            candidates, composites=rows, masks=rows + 50, files=range(100, 106), read=self.read
        )
        return background_scores.run_all(steps)


@pytest.mark.parametrize("world", [World(), World(cut=True), World(ones=True)])
def test_the_right_candidate_wins_by_a_margin(world: World) -> None:
    wrong = (world.truth + 1).astype(np.int32) % 6
    scores = world.score(wrong, world.truth)
    assert scores.winner == 1
    assert scores.agreement[1] == 1.0
    assert scores.errors[1] < 6
    assert scores.agreement[0] < 0.1
    assert scores.margin > 5
    assert scores.samples == 30


def test_candidates_that_differ_seldom_are_compared_where_they_differ() -> None:
    world = World()
    nearly = world.truth.copy()
    nearly[[4, 16]] = (nearly[[4, 16]] + 1) % 6
    rows = np.arange(30, dtype=np.int32)
    steps = background_scores.score_steps(
        [nearly, world.truth], composites=rows, masks=rows + 50, files=range(100, 106),
        read=world.read, samples=6,
    )  # fmt: skip
    scores = background_scores.run_all(steps)
    assert scores.winner == 1
    assert 4 in world.reads
    assert 16 in world.reads


def test_a_candidate_is_scored_by_the_samples_of_which_it_says_something() -> None:
    world = World()
    part = np.where(world.truth == 5, -1, world.truth).astype(np.int32)
    wrong = ((world.truth + 1) % 6).astype(np.int32)
    scores = world.score(wrong, part)
    assert (scores.winner, scores.agreement[1]) == (1, 1.0)
    assert scores.margin > 5
    # One that says more wins where pixels bear out what it adds, and loses where they do not.
    assert world.score(part, world.truth).winner == 1
    assert world.score(world.truth, part).winner == 0
    more = np.where(part < 0, 0, part).astype(np.int32)
    assert world.score(more, part).winner == 1
    assert world.score(part, more).winner == 0
    # Where none of these samples can be opened, nothing does.
    for row in np.flatnonzero(part < 0).tolist():
        world.data[row] = b"no picture"
    assert world.score(world.truth, part).winner == 1


def test_no_candidate_wins_where_none_is_right() -> None:
    world = World()
    wrong = [((world.truth + step) % 6).astype(np.int32) for step in (1, 2)]
    assert world.score(*wrong).winner is None


def test_a_mask_that_leaves_no_room_tells_nothing() -> None:
    world = World(masked=0.95)
    scores = world.score(world.truth, ((world.truth + 1) % 6).astype(np.int32))
    assert scores.samples == 0
    assert (scores.decoded, scores.covered) == (30, 30)
    assert scores.winner is None


def test_damaged_pictures_are_passed_over() -> None:
    world = World()
    good = world.read

    def read(index: int) -> bytes:
        if index in (3, 60):
            raise EntryError("cut")
        return good(index)[: 40 if index in (5, 61) else None]

    world.read = read  # type: ignore[method-assign]
    scores = world.score(world.truth, ((world.truth + 1) % 6).astype(np.int32))
    assert scores.winner == 0
    assert scores.samples == 26


def test_a_turned_jpeg_is_compared_as_it_is_stored() -> None:
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None], 16, axis=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "JPEG", exif=exif)
    found = thumbnails.open_small(file.getvalue(), "L", 8)
    assert found is not None
    assert found.width * 2 == found.height
    assert np.asarray(found)[0].mean() < 60 < 190 < np.asarray(found)[-1].mean()


def test_trimaps_and_arrays_say_where_the_ground_is() -> None:
    world = World()
    for row in range(30):
        plane = np.full((40, 40), 2, np.uint8)
        plane[:10], plane[10:14] = 1, 3
        file = io.BytesIO()
        np.save(file, plane)
        world.data[50 + row] = png(plane) if row % 2 else file.getvalue()
    scores = world.score(world.truth, ((world.truth + 1) % 6).astype(np.int32))
    assert (scores.winner, scores.samples, scores.covered) == (0, 30, 0)
