"""Train with Lightning on two processes; loaders are opened in hooks, after the process group.

python docs/examples/with_lightning.py OUT FOLDER [CHECKPOINT]
"""

import sys

import lightning
import torch
from torch import Tensor, nn

from shardify import Loader


class Segmenter(lightning.LightningModule):
    """Predicts the mask."""

    def __init__(self, data: str) -> None:
        super().__init__()
        self.data = data
        self.net = nn.Conv2d(6, 1, 3, padding=1)
        self.pixels = 0.0
        self.register_buffer("sums", torch.zeros(2), persistent=False)

    def train_dataloader(self) -> Loader:
        """Open the training split; Lightning calls this when the rank is known."""
        return Loader(self.data, split="train", res=32, batch_size=4, device=str(self.device))

    def val_dataloader(self) -> Loader:
        """Open the validation split."""
        options = {"res": 32, "batch_size": 4, "device": str(self.device)}
        return Loader(self.data, split="val", augment=False, **options)

    def training_step(self, batch, _) -> Tensor:
        """Return the loss of a batch."""
        self.pixels += float(batch.mask.sum())
        logits = self.net(torch.cat((batch.bg, batch.fg_bg), dim=1))
        return nn.functional.binary_cross_entropy_with_logits(logits, batch.mask)

    def on_train_epoch_start(self) -> None:
        """Set the epoch: Lightning restores a loader's state in the middle of an epoch only."""
        self.trainer.train_dataloader.set_epoch(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        """Print what this rank has seen."""
        batches = len(self.trainer.train_dataloader)
        epoch, rank = self.current_epoch, self.global_rank
        print(f"rank {rank}: epoch {epoch}: {batches} batches, {self.pixels:.0f} object pixels")
        self.pixels = 0.0

    def validation_step(self, batch, _) -> None:
        """Count right pixels; the last batches may be short, or empty on some ranks."""
        logits = self.net(torch.cat((batch.bg, batch.fg_bg), dim=1))
        right = ((logits > 0) == (batch.mask > 0)).float().mean(dim=(1, 2, 3))
        self.sums += torch.tensor([float(right.sum()), len(right)], device=self.device)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy over the samples of all ranks."""
        right, samples = self.all_gather(self.sums).reshape(-1, 2).sum(dim=0)
        self.log("accuracy", right / samples, sync_dist=True)
        self.sums.zero_()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> None:
    """Train two epochs, or two more after those of a checkpoint."""
    data, folder, *checkpoint = sys.argv[1:]
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=4 if checkpoint else 2,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Segmenter(data), ckpt_path=checkpoint[0] if checkpoint else None)
    if trainer.is_global_zero:
        print(f"accuracy {float(trainer.callback_metrics['accuracy']):.3f}")


if __name__ == "__main__":
    main()
