"""A Python where only the packages of a GPU machine that reaches no registry can be imported."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

THERE = (
    # What docs/gpu.md says must be there, and what these need themselves.
    "torch torchgen functorch triton typing_extensions sympy mpmath networkx jinja2 markupsafe "
    "filelock setuptools _distutils_hack pkg_resources numpy PIL click rich markdown_it mdurl "
    "pygments numba llvmlite safetensors torchmetrics lightning_utilities packaging yaml "
    "pytest _pytest pluggy iniconfig py "
    # What is brought along.
    "nvidia astunparse six gast makefun libcst nvtx optree webdataset braceexpand "
    # This program, and its tests.
    "shardify model train conftest shardline_gpu shardline_samples"
).split()

HOOK = """
import importlib.metadata, sys

THERE = {there!r}

class Only:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if path is None and top not in THERE and top not in sys.stdlib_module_names \\
                and not top.startswith(("_", "test_")):
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Only, sys.meta_path)

known = importlib.metadata.Distribution.from_name

def from_name(name):
    if name == "shardline":  # It lies on the path there and was never installed.
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

importlib.metadata.Distribution.from_name = staticmethod(from_name)
"""


def offline(folder: Path) -> dict[str, str]:
    """The environment of a process, and of all it starts, that lacks everything else.

    Args:
        folder: Any; the hook is put there.
    """
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK.format(there=set(THERE)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(hook), str(ROOT)])}
