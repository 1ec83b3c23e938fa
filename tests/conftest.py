"""What every test file shares: the ``gpu`` marker's skip, and the photographs if they are there."""

import ctypes
from pathlib import Path

import pytest

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos-2k.zip"


def _gpu_is_there() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, by name and with the reason, what needs a GPU where there is none."""
    if _gpu_is_there():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; none here"))


@pytest.fixture(scope="session")
def photos() -> Path:
    """The zip of 2,000 real photographs' samples."""
    if not PHOTOS.is_file():
        pytest.skip(f"needs {PHOTOS}")
    return PHOTOS
