"""How much memory a step takes, and which batch would have fitted.

Measures and tries; changes no setting.
"""

import gc
import resource
from collections.abc import Callable, Iterator
from itertools import islice

import torch

from shardify.loader.batch import Batch, synthetic
from train.errors import FitError
from train.optim.step import StepResult, TrainStep

__all__ = [
    "OUT_OF_MEMORY",
    "fitting",
    "is_out_of_memory",
    "largest_batch",
    "next_of",
    "oom_message",
    "peak_mb",
    "release",
]

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError, RuntimeError)
"""What to catch before asking `is_out_of_memory`: a CPU's allocator raises a plain RuntimeError."""


CPU_SAYS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, whose buffers are its own.
)
"""What a RuntimeError of missing memory says on a CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in CPU_SAYS)


def peak_mb(device: torch.device) -> float:
    """The most memory in use so far. MB: of the GPU by torch, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def largest_batch(fits: Callable[[int], bool], below: int) -> int:
    """The largest batch that fits, by bisection.

    Args:
        fits: Whether a batch of so many samples does.
        below: A number of samples that does not.

    Returns:
        0 if not even a single sample fits.
    """
    good, bad = 0, below
    while bad - good > max(1, good // 16):  # Near enough: memory varies a little between steps.
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def next_of(batches: Iterator[Batch], count: int) -> list[Batch]:
    """The next ``count`` batches, or fewer at the end, whose making may run out of memory.

    Raises:
        FitError: It did.
    """
    try:
        return list(islice(batches, count))
    except OUT_OF_MEMORY as error:
        if not is_out_of_memory(error):
            raise
    raise FitError("--batch: memory ran out while the loader made the next one; use a smaller one")


def fitting(step: TrainStep, batches: list[Batch], *, channels_last: bool) -> list[StepResult]:
    """``step.gradients``, whose memory may run out.

    Args:
        step: The step.
        batches: Of a step; emptied where they did not fit.
        channels_last: Memory format of the images.

    Raises:
        FitError: They did not fit; the message says which would.
    """
    try:
        return step.gradients(batches)
    except OUT_OF_MEMORY as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the failed step's tensors are free only when its traceback is.
    (samples, _, _, res), device = batches[0].mask.shape, batches[0].mask.device
    batches.clear()
    raise FitError(oom_message(step, samples, res, device, channels_last=channels_last))


def oom_message(
    step: TrainStep, batch: int, res: int, device: torch.device, *, channels_last: bool
) -> str:
    """The line for a batch that did not fit, with the largest that would.

    Args:
        step: The step that failed.
        batch: Samples that it was given.
        res: Their resolution. Pixels.
        device: Where they lie.
        channels_last: Their memory format.
    """

    def fits(samples: int) -> bool:
        release()
        try:
            # A compiled network would be compiled anew for each size that is tried.
            with torch.compiler.set_stance("force_eager"):
                step.gradient(synthetic(samples, res, device=device, channels_last=channels_last))
        except OUT_OF_MEMORY as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            step.forget()
        return True

    step.forget()
    largest = largest_batch(fits, batch)
    release()
    remedy = (
        f"the largest that does is {largest}: use it, with --grad-accum to keep the step's size"
        if largest
        else "not even one sample did after that: lower --batch or --res, or use another device"
    )
    return f"--batch {batch}: does not fit into the memory of {device} at {res} px; {remedy}"


def release() -> None:
    """Give back what nothing holds any more, also what torch keeps at hand of a GPU's memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
