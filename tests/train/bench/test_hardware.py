import sys
import time
from types import SimpleNamespace

import pytest

from train.bench import hardware

GPUS = ["GPU-aaaa-0", "GPU-bbbb-1", "GPU-bccc-2"]


class Pynvml:
    """A stand-in for nvidia-ml-py with three GPUs; a handle is 1 + the GPU's place."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index) -> int:
        if index >= len(GPUS):
            raise self.NVMLError
        return 1 + index

    def nvmlDeviceGetHandleByUUID(self, unique) -> int:
        if unique not in GPUS:
            raise self.NVMLError
        return 1 + GPUS.index(unique)

    def nvmlDeviceGetCount(self) -> int:
        return len(GPUS)

    def nvmlDeviceGetUUID(self, handle) -> str:
        return GPUS[handle - 1]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13020

    def nvmlDeviceGetUtilizationRates(self, handle) -> SimpleNamespace:
        return SimpleNamespace(gpu=10 * handle, memory=handle)

    def nvmlDeviceGetJpgUtilization(self, handle) -> list[int]:
        return [50 + handle, 1000]

    def nvmlDeviceGetDecoderUtilization(self, _handle) -> list[int]:
        raise self.NVMLError

    def nvmlDeviceGetMemoryInfo(self, handle) -> SimpleNamespace:
        return SimpleNamespace(used=handle * 10**9)


@pytest.fixture
def three(monkeypatch) -> None:
    monkeypatch.setattr(hardware, "_NVML", Pynvml())
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
    found = hardware.gpu_utilisation(hardware.visible_gpu(place))
    assert found == {
        "compute": 10.0 * (number + 1), "memory_bus": number + 1.0, "jpeg": 51.0 + number,
        "memory_gb": number + 1.0,
    }  # fmt: skip
    if place == 0:
        assert hardware.gpu_utilisation() == found


@pytest.mark.usefixtures("three")
def test_a_gpu_that_does_not_exist_has_no_utilisation() -> None:
    for gpu in (3, "GPU-dddd-9", "MIG-1"):
        assert hardware.gpu_utilisation(gpu) == {}


@pytest.mark.usefixtures("three")
def test_torch_and_the_driver_may_count_in_different_orders(monkeypatch) -> None:
    unique = {0: "bccc-2", 1: "aaaa-0"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda place: SimpleNamespace(uuid=unique[place])
    )
    assert hardware.gpu_of("cuda") == hardware.gpu_of("cuda:0") == "GPU-bccc-2"
    assert hardware.gpu_of("cuda:1") == "GPU-aaaa-0"
    assert hardware.gpu_of("cpu") is None


@pytest.mark.usefixtures("three")
def test_a_gpu_without_a_unique_number_is_found_by_its_place(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert hardware.gpu_of("cuda:1") == 2


@pytest.mark.usefixtures("three")
def test_a_monitor_samples_the_gpu_it_was_given() -> None:
    with hardware.GpuMonitor("GPU-bbbb-1", every=0.01) as monitor:
        time.sleep(0.05)
    assert monitor.means()["compute"] == 20.0
    assert monitor.peaks()["jpeg"] == 52.0


def test_a_monitor_tells_means_and_peaks_of_all_samples(monkeypatch) -> None:
    values = iter([{"jpeg": 0.0}, {"jpeg": 30.0, "compute": 50.0}])
    monkeypatch.setattr(hardware, "gpu_utilisation", lambda _: next(values, {}))
    with hardware.GpuMonitor(every=0.01) as monitor:
        time.sleep(0.1)
    assert monitor.means() == {"jpeg": 15.0, "compute": 50.0}
    assert monitor.peaks() == {"jpeg": 30.0, "compute": 50.0}


@pytest.mark.usefixtures("three")
def test_the_driver_says_its_version_and_its_cuda() -> None:
    assert hardware.conditions("cpu")["driver"] == "580.1"
    assert hardware.conditions("cpu")["driver_cuda"] == "13.2"


@pytest.mark.parametrize("lacking", ["driver", "package"])
def test_without_a_driver_or_the_package_every_answer_is_none(monkeypatch, lacking) -> None:
    pynvml = Pynvml() if lacking == "driver" else None
    monkeypatch.setattr(Pynvml, "nvmlInit", lambda self: self.nvmlDeviceGetHandleByIndex(3))
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    monkeypatch.setattr(hardware, "_NVML", hardware._open_nvml())
    assert hardware.conditions("cpu")["driver"] is None
    assert hardware.conditions("cpu")["driver_cuda"] is None
    assert hardware.gpu_utilisation() == {}
    with hardware.GpuMonitor(every=0.01) as monitor:
        pass
    assert monitor.means() == monitor.peaks() == {}


def test_with_a_driver_the_package_is_used(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Pynvml())
    monkeypatch.setattr(hardware, "_NVML", hardware._open_nvml())
    assert hardware.conditions("cpu")["driver"] == "580.1"


@pytest.mark.usefixtures("three")
def test_what_the_package_does_not_know_is_left_out(monkeypatch) -> None:
    monkeypatch.delattr(Pynvml, "nvmlDeviceGetJpgUtilization")
    assert "jpeg" not in hardware.gpu_utilisation(0)


def test_the_functions_asked_for_are_those_of_the_package() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in vars(Pynvml):
        assert name.startswith("_") or hasattr(pynvml, name), name
