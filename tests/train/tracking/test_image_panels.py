from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shardify.loader.batch import Batch
from train.tracking.image_panels import COLUMNS, GAP, HOLE, TITLE, Rows, draw, first_rows, join_rows

MEAN = {"bg": [0.4, 0.5, 0.6], "fg_bg": [0.5, 0.5, 0.5]}
STD = {"bg": [0.2, 0.2, 0.2], "fg_bg": [0.25, 0.25, 0.25]}


def rows(count: int, res: int) -> Rows:
    planes = [torch.zeros(count, 1, res, res) for _ in range(4)]
    mask, predicted, depth, told = planes
    mask[:, :, : res // 2] = 1
    predicted[:] = 0.5
    depth[:, :, :, res // 2 :] = 0.3
    depth[:, :, :, : res // 2] = 0.1
    told[:] = 0.2
    bg, fg_bg = torch.zeros(count, 3, res, res), torch.ones(count, 3, res, res)
    return Rows(Batch(bg, fg_bg, mask, depth), predicted, told)


def cell(picture: np.ndarray, row: int, column: int, size: int, *, titles: int) -> np.ndarray:
    """The pixels of one cell."""
    top = TITLE * titles + GAP + row * (size + GAP)
    left = GAP + column * (size + GAP)
    return picture[top : top + size, left : left + size]


@pytest.mark.parametrize(("res", "size"), [(32, 96), (64, 128), (256, 256)])
def test_every_image_stands_in_its_column(tmp_path: Path, res: int, size: int) -> None:
    path = tmp_path / "panel.png"
    draw(path, rows(2, res), mean=MEAN, std=STD, title="epoch 0")
    picture = np.asarray(Image.open(path))
    height = 2 * TITLE + 2 * (size + GAP) + GAP
    assert picture.shape == (height, len(COLUMNS) * (size + GAP) + GAP, 3)
    for row in range(2):
        cells = [cell(picture, row, column, size, titles=2) for column in range(6)]
        assert np.ptp(cells[0], axis=(0, 1)).max() == 0
        assert cells[0][0, 0].tolist() == [102, 128, 153]  # The mean: normalisation is undone.
        assert cells[1][0, 0].tolist() == [191] * 3  # The mean and one deviation.
        assert cells[2][0, 0, 0] == 255 and cells[2][-1, 0, 0] == 0
        assert set(np.unique(cells[3])) == {128}
        # Depth and prediction share a scale: 0.1 is black, 0.3 white, 0.2 between them.
        assert cells[4][0, 0, 0] == 0 and cells[4][0, -1, 0] == 255
        assert set(np.unique(cells[5])) <= {127, 128}


def test_titles_are_drawn_and_the_top_line_only_if_given(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", rows(1, 96), mean=MEAN, std=STD)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape[0] == TITLE + 96 + 2 * GAP
    for column in range(len(COLUMNS)):
        left = GAP + column * (96 + GAP)
        assert (picture[:TITLE, left : left + 96] < 128).any(), COLUMNS[column]


def test_a_depth_of_one_value_is_drawn_without_a_division(tmp_path: Path) -> None:
    flat = rows(1, 32)
    flat.batch.depth.fill_(0.4)
    draw(tmp_path / "a.png", flat, mean=MEAN, std=STD)
    assert (cell(np.asarray(Image.open(tmp_path / "a.png")), 0, 4, 96, titles=1) == 0).all()


def test_pixels_without_a_depth_are_shown_in_one_colour_and_leave_the_scale_alone(
    tmp_path: Path,
) -> None:
    whole = rows(2, 32)
    valid = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    valid[0, :, :10, :10] = False
    valid[1] = False
    depth = torch.where(valid, whole.batch.depth, 0.0)
    draw(
        tmp_path / "a.png",
        whole._replace(batch=whole.batch._replace(depth=depth, valid={"depth": valid})),
        mean=MEAN, std=STD,
    )  # fmt: skip
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    first = cell(picture, 0, 4, 96, titles=1)
    assert (first[:30, :30] == HOLE).all()
    # 0.1 is still black, 0.3 white.
    assert first[-1, 0].tolist() == [0] * 3 and first[0, -1].tolist() == [255] * 3
    assert (cell(picture, 1, 4, 96, titles=1) == HOLE).all()
    assert (np.ptp(cell(picture, 0, 5, 96, titles=1), axis=2) == 0).all()
    # The title says what the colour means.
    left = GAP + 4 * (96 + GAP)
    title = picture[:TITLE, left : left + 96].astype(int)
    assert (title[..., 0] - title[..., 1] > 100).any()
    draw(tmp_path / "b.png", whole, mean=MEAN, std=STD)
    plain = np.asarray(Image.open(tmp_path / "b.png"))[:TITLE].astype(int)
    assert not (plain[..., 0] - plain[..., 1] > 100).any()


def test_samples_are_joined_with_their_validity() -> None:
    whole = rows(3, 32)
    valid = torch.rand(3, 1, 32, 32) > 0.5
    batch = whole.batch._replace(valid={"depth": valid})
    parts = [
        first_rows(batch, whole.mask, whole.depth, 2),
        first_rows(batch, whole.mask, whole.depth, 1, first=2),
    ]
    joined = join_rows(parts, frozenset(COLUMNS))
    assert joined is not None
    assert torch.equal(joined.batch.valid["depth"], valid)
    assert torch.equal(joined.batch.mask, whole.batch.mask)
