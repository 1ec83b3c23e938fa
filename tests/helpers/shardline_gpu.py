"""What the tests of the GPU share, written so that a CPU runs the same lines.

Needs pytest, NumPy, torch, Pillow and the packages under test; no plugin of pytest.
"""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from shardify.dataset.manifest import Manifest
from shardify.loader.batch import Batch
from shardify.loader.loader import Loader

ROOT = Path(__file__).resolve().parents[2]

SIZES = {"res": 64, "batch_size": 8}


def batches(data: Path, device: str, epochs: int = 1, **options: Any) -> list[Batch]:
    """All batches of some epochs, on the CPU, in float32, in NCHW."""
    with Loader(data, device=device, **{**SIZES, **options}) as loader:
        return [
            batch.map(lambda tensor: tensor.float().cpu().contiguous())
            for _ in range(epochs)
            for batch in loader
        ]


def same(first: Batch, second: Batch) -> bool:
    """Bit for bit."""
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def levels(first: torch.Tensor, second: torch.Tensor, std: float) -> torch.Tensor:
    """How far two normalised pictures are apart, in levels of 255."""
    return (first - second).abs() * (255 * std)


def progressive(source: Path, out: Path) -> Path:
    """The same data set with every JPEG of the training split written anew, progressively.

    The shards' members change their sizes, so index and manifest are written anew as well.
    """
    out.mkdir()
    for path in source.iterdir():
        if not path.name.startswith("train-"):
            (out / path.name).write_bytes(path.read_bytes())
    text = (source / "manifest.json").read_text()
    for path in sorted(source.glob("train-*.tar")):
        stream, lines = io.BytesIO(), {}
        with tarfile.open(path) as old, tarfile.open(
            fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT
        ) as new:  # fmt: skip
            for member in old.getmembers():
                data = old.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".jpg"):
                    again = io.BytesIO()
                    image = Image.open(io.BytesIO(data))
                    image.save(again, "JPEG", quality=95, progressive=True)
                    data = again.getvalue()
                info = tarfile.TarInfo(member.name)
                info.size = len(data)
                offset = new.offset + 512
                new.addfile(info, io.BytesIO(data))
                key, _, role = member.name.partition(".")
                lines.setdefault(key, []).append(f"{role} {offset} {len(data)} {member.name}")
        (out / path.name).write_bytes(stream.getvalue())
        index = [f"v1.2 {len(lines)}", *(" ".join(line) for line in lines.values())]
        (out / path.name).with_suffix(".idx").write_text("\n".join(index) + "\n")
        before = hashlib.sha256(path.read_bytes()).hexdigest()
        text = text.replace(before, hashlib.sha256(stream.getvalue()).hexdigest())
        text = re.sub(
            rf'("name": "{path.name}".*?"bytes": )\d+', rf"\g<1>{len(stream.getvalue())}",
            text, flags=re.S,
        )  # fmt: skip
    (out / "manifest.json").write_text(text)
    Manifest.load(out)
    return out


def decoders(data: Path, device: str, loads: Sequence[float]) -> list[tuple[dict[str, int], Any]]:
    """Who decodes, for each share of the JPEGs that the engine is asked to take.

    nvImageCodec tells its log which decoder it hands which image to; DALI passes the log on at
    level 3 (DALI_NVIMGCODEC_LOG_LEVEL). Background images and all else that is decoded while a
    loader is built are not counted. With one thread, for several write their lines into each other.

    Returns:
        How many images each of the decoders beneath DALI took in an epoch, and how busy the JPEG
        engine was at most in some more of them (per cent; None: the driver does not say).
    """
    code = (
        "import json, sys, time\n"
        "from train.bench.hardware import GpuMonitor\n"
        "from shardify.loader.loader import Loader\n"
        "data, loads, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])\n"
        "for load in loads:\n"
        "    with Loader(data, hw_decoder_load=load, **options) as loader:\n"
        "        print('BEGIN', flush=True)\n"
        "        for batch in loader: pass\n"
        "        print('END', flush=True)\n"
        "        began = time.monotonic()\n"
        "        with GpuMonitor(every=0.02) as monitor:\n"
        "            while options['device'] == 'cuda' and time.monotonic() - began < 2:\n"
        "                for batch in loader: del batch\n"
        "        print('\\nPEAK', json.dumps(monitor.peaks().get('jpeg')), flush=True)\n"
    )
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    options = {**SIZES, "device": device, "threads": 1}
    done = subprocess.run(
        [sys.executable, "-c", code, str(data), json.dumps(list(loads)), json.dumps(options)],
        env={
            **os.environ,
            "DALI_NVIMGCODEC_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout[-2000:]}"
    found = []
    for part in done.stdout.split("BEGIN")[1:]:
        log, _, rest = part.partition("END")
        assert log.strip(), "nvImageCodec wrote no log"
        found.append((count_decoders(log), json.loads(rest.split("PEAK", 1)[1].split("\n")[0])))
    return found


def count_decoders(log: str) -> dict[str, int]:
    """Images by decoder, from a log of nvImageCodec.

    A decoder takes images one by one (``NAME process #3``) or many at once (``num_samples=8``).
    """
    found: dict[str, int] = {}
    for line in log.splitlines():
        name = re.search(r"\b\w+_decoder\b", line)
        if name is None or "create" in line:
            continue
        many = re.search(r"(?:num_samples=|batch of )(\d+)", line)
        count = 1 if "process #" in line else int(many[1]) if many else 0
        found[name[0]] = found.get(name[0], 0) + count
    return found


def copies(data: Path, device: str, steps: int, **options: Any) -> dict[str, list[int]]:
    """Bytes of each copy between host and device while ``steps`` batches are made and used.

    Returns:
        ``HtoD`` and ``DtoH``: a number a copy, of all threads.
    """
    kinds = [ProfilerActivity.CPU]
    if device != "cpu":
        kinds.append(ProfilerActivity.CUDA)
    found: dict[str, list[int]] = {"HtoD": [], "DtoH": []}
    with Loader(data, device=device, **{**SIZES, **options}) as loader:
        batch = next(iter(loader))
        with profile(activities=kinds) as seen:
            for _, batch in zip(range(steps), loader, strict=False):
                batch.bg.sum()
            if device != "cpu":
                torch.cuda.synchronize()
    for event in json.loads(_trace(seen))["traceEvents"]:
        for way, sizes in found.items():
            if way in event.get("name", "") and "bytes" in event.get("args", {}):
                sizes.append(int(event["args"]["bytes"]))
    return found


def _trace(seen: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        return path.read_text()


def held(device: str) -> dict[str, float]:
    """Memory in use now: of this process on the host, of the whole GPU. MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = {"host": pages * 4096 / 1e6}
    if device != "cpu":
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        found["gpu"] = (total - free) / 1e6
    return found


def growth(data: Path, device: str, steps: int, **options: Any) -> dict[str, float]:
    """How much more memory is held after ``steps`` batches than after a third of them. MB."""
    with Loader(data, device=device, **{**SIZES, **options}) as loader:
        made, before = 0, None
        while made < steps:
            for batch in loader:
                made += 1
                del batch
                if before is None and made >= steps // 3:
                    before = held(device)
                if made >= steps:
                    break
        after = held(device)
    assert before is not None
    return {place: after[place] - before[place] for place in after}


def resumed(
    data: Path, device: str, places: Sequence[int], **options: Any
) -> list[tuple[list[Batch], list[Batch]]]:
    """The batches after so many steps of two epochs: as they came, and of a loader resumed there.

    Returns:
        Both, for each of ``places``.
    """
    settings = {**SIZES, "device": device, **options}
    found = []

    def host(batch: Batch) -> Batch:
        return Batch(*(tensor.float().cpu() for tensor in batch))

    with (
        Loader(data, **settings) as loader,
        Loader(data, **{**settings, "seed": 99, "threads": 1}) as other,
    ):
        for at in places:
            loader.epoch = 0
            going = iter(loader)
            for _ in range(at):
                next(going)
            state = json.loads(json.dumps(loader.state_dict()))
            rest = [host(batch) for batch in going] + [host(batch) for batch in loader]
            other.load_state_dict(state)
            again = [host(batch) for batch in other] + [host(batch) for batch in other]
            found.append((rest, again))
    return found


def noisy(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sample as a camera gives one, of 120 x 120: smooth, grainy, with an object."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:120, :120] / 120
    waves = np.sin(x[..., None] * rng.uniform(2, 9, 3) + y[..., None] * 5 + rng.uniform(0, 6, 3))
    grain = rng.normal(0, 4, (120, 120, 1))
    fg_bg = np.clip(127 + 90 * waves + grain, 0, 255).astype(np.uint8)
    disc = np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.3, 0.7)) < 0.25
    depth = (200 * (x + y) / 2 + 20).astype(np.uint8)
    return fg_bg, np.where(disc, 255, 0).astype(np.uint8), depth
