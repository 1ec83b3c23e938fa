"""Measure memory use; when a batch does not fit, find the largest that does."""

import gc
import resource
from collections.abc import Callable, Iterator
from itertools import islice

import torch

from shardify.loader.batch import Batch, synthetic
from shardify.resolution import Resolution
from train.errors import FitError
from train.optim.step import StepResult, TrainStep

OOM_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)
"""Errors to catch and test by `is_out_of_memory`; the CPU allocator raises a plain RuntimeError."""


CPU_OOM_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN allocates its own buffers.
)
"""Parts of the RuntimeErrors that mean out of memory on a CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(message in str(error) for message in CPU_OOM_MESSAGES)


def peak_mb(device: torch.device) -> float:
    """Return the peak memory use in MB: of torch on a GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def largest_batch(fits: Callable[[int], bool], below: int) -> int:
    """Find the largest batch that fits, by bisection.

    ``fits`` returns whether that many samples fit; ``below`` samples do not.

    Returns:
        Number of samples, to about 6 %; 0 if a single sample does not fit.
    """
    good, bad = 0, below
    while bad - good > max(1, good // 16):  # Memory varies a little between steps.
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def next_batches(batches: Iterator[Batch], count: int) -> list[Batch]:
    """Return the next ``count`` batches, or fewer at the end of the epoch.

    Raises:
        FitError: The loader ran out of memory.
    """
    try:
        return list(islice(batches, count))
    except OOM_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    raise FitError("--batch: out of memory in the loader; use a smaller --batch")


def gradients_in_memory(
    step: TrainStep, batches: list[Batch], *, channels_last: bool
) -> list[StepResult]:
    """Call ``step.gradients``; if memory runs out, say which batch size fits.

    The list of batches is emptied if they do not fit.

    Raises:
        FitError: Out of memory; the message names the largest batch that fits.
    """
    try:
        return step.gradients(batches)
    except OOM_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler, because the traceback keeps the tensors of the failed step alive.
    (samples, _, *size), device = batches[0].mask.shape, batches[0].mask.device
    res = Resolution(*size)
    batches.clear()
    raise FitError(oom_message(step, samples, res, device, channels_last=channels_last))


def oom_message(
    step: TrainStep, batch: int, res: Resolution, device: torch.device, *, channels_last: bool
) -> str:
    """Return the error line for a batch that did not fit; it names the largest that fits."""

    def fits(samples: int) -> bool:
        release()
        try:
            # Else a compiled network would be compiled again for each size.
            with torch.compiler.set_stance("force_eager"):
                step.gradient(synthetic(samples, res, device=device, channels_last=channels_last))
        except OOM_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            step.clear_gradients()
        return True

    step.clear_gradients()
    largest = largest_batch(fits, batch)
    release()
    remedy = (
        f"the largest that fits is {largest}: use it, with --grad-accum for the same total batch"
        if largest
        else "a single sample does not fit either: lower --batch or --res, or use another device"
    )
    return f"--batch {batch}: does not fit into the memory of {device} at {res} px; {remedy}"


def release() -> None:
    """Collect garbage and empty torch's cache of GPU memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
