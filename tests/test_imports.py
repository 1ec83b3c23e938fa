"""Imports point one way, and every module has its place in that order."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A module may import those named before it in its own package, and what ACROSS allows.
ORDER = {
    "shardify": (
        "errors", "version", "inflate", "remote", "tree", "ranges", "files", "drafts", "names",
        "local", "spare", "pagecache", "readahead", "zipend", "sifting", "directory", "archive",
        "extract", "images", "beginnings", "png", "pixels", "moments", "codecs", "naming",
        "outlines", "recipes", "keys", "maps", "folders",
        "workshop", "nested", "gather", "repeats", "census", "joining", "pairs", "backing",
        "thumbs", "likeness", "settle", "pixel_kinds", "role_candidates", "roles", "rules",
        "splits", "claims", "prove",
        "companions", "layout", "layoutfile", "plan", "index", "fields", "manifest", "serving",
        "workers", "pool", "cluster",
        "hire", "sources", "tasks", "tarwriter", "handover", "machine", "bytework", "kernel",
        "compiling", "copier", "careful", "sinks", "writer", "swift", "reading", "rejects",
        "survey", "meanings", "handout", "output", "summary", "bank", "publish", "build", "verify",
        "stats", "report", "textures", "canvas", "scenes",
        "cutouts", "composites", "zipwriter", "synth", "enlarge", "cost", "benchpage",
        "phases", "bench", "texts",
        "progress", "options", "cli", "interrupts", "__main__",
    ),
    "model": (
        "blocks", "resunet", "unet", "losses", "supervision", "registry",
    ),
    "train": (
        "errors", "drafts", "config", "settings", "distributed", "order", "draws", "access",
        "index", "mapped", "shards", "raw", "batch", "kernel", "fused", "feed", "prefetch",
        "picks", "graph", "decode", "backgrounds", "normal", "engine", "pipeline", "pillow",
        "baselines", "peers", "logs", "progress", "schedule", "step", "metrics", "panels",
        "checkpoint", "writer", "board", "folder", "stop", "source", "memory", "tracing",
        "trained", "evaluate", "average", "networks", "state", "notes", "keeper", "stages",
        "samples", "charts", "report", "trainer", "claim", "launch", "compare", "pairing",
        "predict", "shelf", "contenders", "nvml", "machine", "window", "verdict", "bench",
        "sweep", "convoy", "dissect", "page", "agenda", "suite", "export", "options", "cli",
        "__main__",
    ),
}  # fmt: skip

# What one package may see of another.
ACROSS = {
    "shardify": (),
    "model": (),
    "train": (
        "model",
        "shardify.manifest",
        "shardify.errors",
        "shardify.interrupts",
        "shardify.readahead",
        "shardify.spare",
        "shardify.version",
    ),
}

# Libraries that only the named modules may import.
ONLY = {
    "nvidia": {"train.graph"},
    "click": {"shardify.cli", "shardify.options", "train.cli", "train.options"},
    "torch": None,  # None: anything but shardify.
}

MODULES = [
    f"{path.parent.name}.{path.stem}"
    for package in ORDER
    for path in sorted((ROOT / package).glob("*.py"))
    if path.stem != "__init__"
]


def imported(module: str) -> set[str]:
    """Every module that ``module`` names in an import, wherever in its file it stands."""
    package, stem = module.split(".")
    found = set()
    for node in ast.walk(ast.parse((ROOT / package / f"{stem}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package if node.level else ""
            name = ".".join(filter(None, (base, node.module)))
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_place_in_the_order(module: str) -> None:
    package, stem = module.split(".")
    assert stem in ORDER[package], f"{module}: give it a place in ORDER (tests/test_imports.py)"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    package, stem = module.split(".")
    earlier = ORDER[package][: ORDER[package].index(stem)]
    for name in imported(module):
        top, _, rest = name.partition(".")
        if top == package and rest:
            assert rest.split(".")[0] in earlier, f"{module} imports {name}, which comes after it"
        elif top in ORDER and top != package:
            assert any(name == ok or name.startswith(f"{ok}.") for ok in ACROSS[package]) or any(
                ok.startswith(f"{name}.") for ok in ACROSS[package]
            ), f"{module} imports {name}: {package} may see {ACROSS[package]} only"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_modules(module: str) -> None:
    tops = {name.split(".")[0] for name in imported(module)}
    for library, modules in ONLY.items():
        if modules is None:
            assert not (library in tops and module.startswith("shardify.")), module
        else:
            assert library not in tops or module in modules, f"{module} imports {library}"
