"""Train with DistributedDataParallel; the loader takes its rank from the process group.

torchrun --nproc-per-node=2 docs/examples/plain_ddp.py OUT
"""

import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from shardify import Loader

EPOCHS = 2


def main() -> None:
    """Train on OUT, and evaluate after each epoch."""
    distributed.init_process_group("gloo")  # On GPUs: "nccl", and device=f"cuda:{LOCAL_RANK}".
    rank = distributed.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Conv2d(6, 1, 3, padding=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train = Loader(sys.argv[1], split="train", res=32, batch_size=4)
    val = Loader(sys.argv[1], split="val", res=32, batch_size=4, augment=False)
    for epoch in range(EPOCHS):
        train.set_epoch(epoch)  # Not needed: each `for` is the next epoch.
        pixels = 0.0
        for batch in train:
            logits = model(torch.cat((batch.bg, batch.fg_bg), dim=1))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pixels += float(batch.mask.sum())
        print(f"rank {rank}: epoch {epoch}: {len(train)} batches, {pixels:.0f} object pixels")
        # Every sample is seen once, so the last batches may be short, or empty on some ranks.
        sums = torch.zeros(2)
        with torch.no_grad():
            for batch in val:
                logits = model.module(torch.cat((batch.bg, batch.fg_bg), dim=1))
                right = ((logits > 0) == (batch.mask > 0)).float().mean(dim=(1, 2, 3))
                sums += torch.tensor([float(right.sum()), len(right)])
        distributed.all_reduce(sums)
        if rank == 0:
            print(f"epoch {epoch}: accuracy {sums[0] / sums[1]:.3f} of {sums[1]:.0f} samples")
    train.close()
    val.close()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
