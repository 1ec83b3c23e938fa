"""Train with Hugging Face Accelerate; the loader takes its rank from the process group.

accelerate launch docs/examples/with_accelerate.py OUT
torchrun --nproc-per-node=2 docs/examples/with_accelerate.py OUT
"""

import sys

import torch
from accelerate import Accelerator
from torch import nn

from shardify import Loader

EPOCHS = 2


def main() -> None:
    """Train on OUT."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    model = nn.Conv2d(6, 1, 3, padding=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Opened after the Accelerator, which creates the process group. `prepare` returns a loader as
    # it is: its batches are on the device, and each rank has its own part of the samples.
    loader = Loader(sys.argv[1], res=32, batch_size=4, device=str(accelerator.device))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(EPOCHS):
        pixels = 0.0
        for batch in loader:
            logits = model(torch.cat((batch.bg, batch.fg_bg), dim=1))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.mask)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            pixels += float(batch.mask.sum())
        rank = accelerator.process_index
        print(f"rank {rank}: epoch {epoch}: {len(loader)} batches, {pixels:.0f} object pixels")
    loader.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
