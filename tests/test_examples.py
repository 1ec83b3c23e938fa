"""The scripts of docs/examples, run as their first lines say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from shardline_samples import write_data_set

from shardify.loader.loader import Loader

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("examples") / "data", train=27, val=5)


def run(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen(output: str) -> dict[tuple[int, int], int]:
    """(rank, epoch) → object pixels, as the examples print them."""
    found = re.findall(r"rank (\d): epoch (\d): 3 batches, (\d+) object pixels", output)
    return {(int(rank), int(epoch)): int(pixels) for rank, epoch, pixels in found}


def expected(data: Path, *epochs: int) -> dict[tuple[int, int], int]:
    """What loaders give to which the ranks are told, whose samples together are the epoch."""
    result = {}
    for rank in range(2):
        with Loader(data, res=32, batch_size=4, rank=rank, world_size=2) as loader:
            for epoch in epochs:
                loader.set_epoch(epoch)
                result[rank, epoch] = round(sum(float(batch.mask.sum()) for batch in loader))
    return result


@pytest.mark.ddp
def test_plain_ddp_gives_each_rank_its_part_of_every_epoch(data: Path) -> None:
    output = run(*TORCHRUN, EXAMPLES / "plain_ddp.py", data)
    assert seen(output) == expected(data, 0, 1)
    assert len(re.findall(r"epoch [01]: accuracy 0\.\d+ of 5 samples", output)) == 2


@pytest.mark.ddp
def test_accelerate_gives_each_rank_its_part_of_every_epoch(data: Path) -> None:
    output = run(*TORCHRUN, EXAMPLES / "with_accelerate.py", data)
    assert seen(output) == expected(data, 0, 1)


@pytest.mark.ddp
def test_lightning_loses_no_epoch_to_its_checks(data: Path, tmp_path: Path) -> None:
    assert seen(run(EXAMPLES / "with_lightning.py", data, tmp_path)) == expected(data, 0, 1)


@pytest.mark.ddp
@pytest.mark.slow
def test_lightning_goes_on_after_a_checkpoint(data: Path, tmp_path: Path) -> None:
    run(EXAMPLES / "with_lightning.py", data, tmp_path)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    second = run(EXAMPLES / "with_lightning.py", data, tmp_path, checkpoint)
    assert seen(second) == expected(data, 2, 3)


MIDDLE = """
import sys
import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
sys.path.insert(0, sys.argv[1])
from with_lightning import Segmenter

class Watched(Segmenter):
    def training_step(self, batch, number):
        print("step", self.global_step, float(batch.fg_bg.double().sum()))
        return super().training_step(batch, number)

data, folder, *checkpoint = sys.argv[2:]
saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=8, save_top_k=-1)
trainer = lightning.Trainer(
    accelerator="cpu", devices=1, max_epochs=2, callbacks=[saver], logger=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Watched(data), ckpt_path=checkpoint[0] if checkpoint else None)
"""


@pytest.mark.slow
def test_lightning_restores_the_loader_in_the_middle_of_an_epoch(
    data: Path, tmp_path: Path
) -> None:
    whole = run("-c", MIDDLE, EXAMPLES, data, tmp_path)
    rest = run("-c", MIDDLE, EXAMPLES, data, tmp_path / "again", tmp_path / "step=8.ckpt")
    steps = [line for line in whole.splitlines() if line.startswith("step ")]
    assert len(steps) == 12  # 27 samples: 6 batches of 4 an epoch.
    assert [line for line in rest.splitlines() if line.startswith("step ")] == steps[8:]
