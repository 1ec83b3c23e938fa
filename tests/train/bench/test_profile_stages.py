import json
from types import SimpleNamespace

import pytest
from shardline_samples import write_data_set
from torch.autograd import DeviceType

from train.bench import profile_stages as module
from train.bench.profile_stages import ProfileConfig, bound, covered, profile_stages


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0),
        ([(1, 3), (5, 6)], 3),
        ([(5, 6), (1, 3)], 3),
        ([(0, 4), (1, 2), (3, 5)], 5),
        ([(0, 1), (1, 2)], 2),
    ],
)
def test_time_that_several_kernels_share_counts_once(spans, length) -> None:
    assert covered(spans) == length


STEP = {
    "wall_ms": 100.0, "device_ms": 50.0, "host_ms": 10.0, "cores": 2.0, "threads": 16,
    "data_wait": 0.0, "gpu": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "begins"),
    [
        ({"data_wait": 0.1}, "the loader: training waits for it 10%"),
        ({"device_ms": 97.0}, "the GPU: it computes 97%"),
        ({"cores": 15.5}, "the CPU: 15.5 cores busy, the GPU idle 50%"),
        ({"host_ms": 95.0}, "the host: it launches the GPU's work too slowly, the GPU idle 50%"),
        ({}, "neither GPU (idle 50%) nor CPU"),
        ({"gpu": False, "device_ms": 0.0}, "the CPU: it does everything here"),
        ({"data_wait": None, "device_ms": 91.0}, "the GPU"),
    ],
)
def test_what_bounds_a_stage_follows_from_who_is_at_work(more, begins) -> None:
    assert bound({**STEP, **more}).startswith(begins)


def event(kind: DeviceType, begin: float, end: float, *, annotation: bool = False, **more):
    spent = {"self_cpu_time_total": 0.0, "self_device_time_total": 0.0, "count": 2, **more}
    return SimpleNamespace(
        device_type=kind, is_user_annotation=annotation,
        time_range=SimpleNamespace(start=begin, end=end), **spent,
    )  # fmt: skip


def test_a_gpus_time_is_of_its_kernels_not_of_annotations_over_them() -> None:
    gpu, cpu = DeviceType.CUDA, DeviceType.CPU
    events = [
        event(gpu, 0, 4000, key="conv", self_device_time_total=4000.0),
        event(gpu, 2000, 6000, key="norm", self_device_time_total=4000.0),
        event(gpu, 0, 20000, key="Optimizer.step#SGD.step", annotation=True,
              self_device_time_total=20000.0),
        event(cpu, 0, 20000, key="aten::conv", self_cpu_time_total=3000.0,
              self_device_time_total=8000.0),
        event(cpu, 0, 9000, key="cudaDeviceSynchronize", self_cpu_time_total=9000.0),
    ]  # fmt: skip
    seen = SimpleNamespace(events=lambda: events, key_averages=lambda: events)
    wanted = ProfileConfig(
        shards="", out="", label="keep", res=64, batch=8, network_batch=8, stages=[],
        device="cuda", threads=16,
    )  # fmt: skip
    found = module._summary(seen, wall=0.02, cpu=0.01, waited=[], batches=2, wanted=wanted)
    assert found["wall_ms"] == 10.0
    assert found["device_ms"] == 3.0
    assert found["host_ms"] == 1.5
    assert found["cores"] == 0.5
    assert [one["name"] for one in found["device_operators"]] == ["conv", "norm"]
    assert [one["share"] for one in found["device_operators"]] == [0.5, 0.5]
    assert [one["name"] for one in found["host_operators"]] == ["aten::conv"]


def test_a_stage_that_fails_is_written_and_the_next_one_goes_on(tmp_path) -> None:
    data = write_data_set(tmp_path / "data", train=32)
    wanted = ProfileConfig(
        shards=str(data), out=str(tmp_path / "out"), label="keep", res=16, batch=8,
        network_batch=2, stages=["nonsense", "model alone"], device="cpu", threads=1, skipped=0,
        batches=1,
    )  # fmt: skip
    bad, good = (json.loads(path.read_text()) for path in profile_stages(wanted))
    assert bad["error"]
    assert good["wall_ms"] > 0
    assert good["host_operators"][0]["share"] > 0.05
    assert (tmp_path / "out" / "keep-16-model-alone.trace.json.gz").stat().st_size > 1000
