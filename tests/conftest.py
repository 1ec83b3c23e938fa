"""What every test file shares: the ``gpu`` marker's skip, and the photographs if they are there."""

import ctypes
import signal
from pathlib import Path

import pytest

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos-2k.zip"

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    pass  # Where only the GPU's tests are run, it may be missing.
else:
    # How long an example takes, or its making, says how busy the machine is, not what is right.
    patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("patient", patient)
    settings.load_profile("patient")

LONGEST = ("test_suite.py", "test_offline.py", "test_ddp.py", "test_kill.py")
"""Files that take minutes: begun first, or one process ends long after the other."""


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests, too")


def pytest_configure() -> None:
    """Take up SIGINT if a shell's ``&`` left it ignored: what the tests start inherits that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest; skip, by name and with the reason, what needs a GPU where none is."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; `make test-slow` runs it"))
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
