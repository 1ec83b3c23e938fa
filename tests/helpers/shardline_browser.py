"""Pages as a browser shows them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def screenshot(page: Path, folder: Path, *, height: int) -> np.ndarray:
    """A page in headless Chromium, 1100 pixels wide: (height, 1100, 3) uint8.

    Skips the test where there is no Chromium. The browser's own files go into ``folder``.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("needs Chromium")
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size=1100,{height}",
         f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'page.png'}",
         f"file://{page}"],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return np.asarray(Image.open(folder / "page.png").convert("RGB"))
