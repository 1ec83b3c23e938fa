import time
from types import SimpleNamespace

import pytest

from train import machine, nvml

GPUS = ["GPU-aaaa-0", "GPU-bbbb-1", "GPU-bccc-2"]


class Library:
    """A driver's library with three GPUs; a handle is 1 + the GPU's place."""

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:
        if index.value >= len(GPUS):
            return 2
        handle._obj.value = 1 + index.value
        return 0

    def nvmlDeviceGetHandleByUUID(self, unique, handle) -> int:
        if unique.decode() not in GPUS:
            return 6
        handle._obj.value = 1 + GPUS.index(unique.decode())
        return 0

    def nvmlDeviceGetCount_v2(self, count) -> int:
        count._obj.value = len(GPUS)
        return 0

    def nvmlDeviceGetUUID(self, handle, text, _size) -> int:
        text.value = GPUS[handle.value - 1].encode()
        return 0

    def nvmlDeviceGetName(self, handle, text, _size) -> int:
        text.value = f"GPU number {handle.value - 1}".encode()
        return 0

    def nvmlSystemGetDriverVersion(self, text, _size) -> int:
        text.value = b"580.1"
        return 0

    def nvmlSystemGetCudaDriverVersion(self, number) -> int:
        number._obj.value = 13020
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle, rates) -> int:
        rates._obj.gpu, rates._obj.memory = 10 * handle.value, handle.value
        return 0

    def nvmlDeviceGetJpgUtilization(self, handle, share, _period) -> int:
        share._obj.value = 50 + handle.value
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory) -> int:
        memory._obj.used = handle.value * 10**9
        return 0


@pytest.fixture
def three(monkeypatch) -> None:
    monkeypatch.setattr(nvml, "_LIBRARY", Library())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("seen", "place", "number"),
    [
        (None, 0, 0),
        (None, 2, 2),
        ("2,0", 0, 2),
        ("2,0", 1, 0),
        (" GPU-bbbb-1 , 0", 0, 1),
        ("GPU-bc", 0, 2),
        ("", 0, 0),
    ],
)
@pytest.mark.usefixtures("three")
def test_the_gpu_in_use_is_the_one_that_cuda_may_see(monkeypatch, seen, place, number) -> None:
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    gpu = nvml.visible(place)
    assert nvml.name(gpu) == f"GPU number {number}"
    assert nvml.parts(gpu) == {
        "compute": 10.0 * (number + 1), "memory_bus": number + 1.0, "jpeg": 51.0 + number,
        "memory_gb": number + 1.0,
    }  # fmt: skip
    if place == 0:
        assert nvml.name() == nvml.name(gpu)


@pytest.mark.usefixtures("three")
def test_a_gpu_that_does_not_exist_has_no_name_and_no_parts() -> None:
    for gpu in (3, "GPU-dddd-9", "MIG-1"):
        assert nvml.name(gpu) is None
        assert nvml.parts(gpu) == {}


@pytest.mark.usefixtures("three")
def test_torch_and_the_driver_may_count_in_different_orders(monkeypatch) -> None:
    unique = {0: "bccc-2", 1: "aaaa-0"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda place: SimpleNamespace(uuid=unique[place])
    )
    assert machine.gpu_of("cuda") == machine.gpu_of("cuda:0") == "GPU-bccc-2"
    assert machine.gpu_of("cuda:1") == "GPU-aaaa-0"
    assert machine.gpu_of("cpu") is None


@pytest.mark.usefixtures("three")
def test_a_gpu_without_a_unique_number_is_found_by_its_place(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert machine.gpu_of("cuda:1") == 2


@pytest.mark.usefixtures("three")
def test_a_watch_looks_at_the_gpu_it_was_given() -> None:
    with nvml.Watch(every=0.01, gpu="GPU-bbbb-1") as watch:
        time.sleep(0.05)
    assert watch.means()["compute"] == 20.0
    assert watch.peaks()["jpeg"] == 52.0


def test_a_watch_tells_means_and_peaks_of_all_that_was_seen() -> None:
    values = iter([{"jpeg": 0.0}, {"jpeg": 30.0, "compute": 50.0}] + [{}] * 1000)
    with nvml.Watch(every=0.01, look=lambda: next(values)) as watch:
        time.sleep(0.1)
    assert watch.means() == {"jpeg": 15.0, "compute": 50.0}
    assert watch.peaks() == {"jpeg": 30.0, "compute": 50.0}


@pytest.mark.usefixtures("three")
def test_the_driver_says_its_version_and_its_cuda() -> None:
    assert nvml.driver() == "580.1"
    assert nvml.cuda_version() == "13.2"


def test_without_a_driver_every_answer_is_none(monkeypatch) -> None:
    monkeypatch.setattr(nvml, "_LIBRARY", None)
    assert nvml.driver() is None
    assert nvml.name() is None
    assert nvml.cuda_version() is None
    assert nvml.parts() == {}


@pytest.mark.usefixtures("three")
def test_a_library_that_lacks_a_question_leaves_it_out(monkeypatch) -> None:
    monkeypatch.delattr(Library, "nvmlDeviceGetJpgUtilization")
    assert "jpeg" not in nvml.parts(0)
