"""Access settings by name: list, check and replace them; read and write TOML.

The fields of ``train.config`` define all settings. An unknown key is refused, and the error names
the most similar valid key.
"""

import ast
import dataclasses
import difflib
import inspect
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from shardify.resolution import Resolution, resolution
from train import config as config_module
from train.config import Config
from train.errors import ConfigError

SYNONYMS = {
    "batch_size": "batch",
    "ema_decay": "ema",
    "grad_clip": "clip",
    "learning_rate": "lr",
    "resolution": "res",
    "scheduler": "schedule",
    "warmup_steps": "warmup",
    "workers": "threads",
}
"""Name of a setting in other programs → name here, for error messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting: a field of a section of `Config`."""

    section: str
    """Name of the table in the TOML file."""

    name: str
    """Key in that table; unique over all sections."""

    kind: type
    """bool, int, float or str; tuple for comma-separated whole numbers, Resolution for
    comma-separated resolutions."""

    choices: tuple[str, ...]
    """Allowed values; empty if there is no list of them."""

    default: Any
    help: str

    @property
    def key(self) -> str:
        """``section.name``."""
        return f"{self.section}.{self.name}"


@cache
def settings() -> tuple[Setting, ...]:
    """Return all settings in the order of ``train.config``."""
    result = []
    for section, cls in get_type_hints(Config).items():
        hints = get_type_hints(cls)
        docs = _docstrings(cls.__name__)
        for item in dataclasses.fields(cls):
            kind, choices = _kind(hints[item.name])
            result.append(
                Setting(
                    section=section,
                    name=item.name,
                    kind=kind,
                    choices=choices,
                    default=item.default,
                    help=docs[item.name],
                )
            )
    names = [setting.name for setting in result]
    assert len(set(names)) == len(names), "names of settings must be unique"
    return tuple(result)


def resolve(base: Config, values: Mapping[str, object], *, where: str = "") -> Config:
    """Return ``base`` with some settings replaced.

    Args:
        base: Source of all settings that are not in ``values``.
        values: ``{name: value}``; lists are accepted for tuples.
        where: File of the values; the first part of error messages.

    Raises:
        ConfigError: A name is unknown, or a value is of the wrong type, out of range or
            contradicts another.
    """
    known = {setting.name: setting for setting in settings()}
    sections: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(_unknown(name, known, where))
        setting = known[name]
        sections.setdefault(setting.section, {})[name] = _typed(setting, value, where)
    try:
        changed = {
            section: dataclasses.replace(getattr(base, section), **fields)
            for section, fields in sections.items()
        }
        return dataclasses.replace(base, **changed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def from_toml(path: Path, base: Config | None = None) -> Config:
    """Read settings from a TOML file; all others are those of ``base`` (default: `Config()`).

    Raises:
        ConfigError: The file cannot be read, is not TOML, or contains an invalid section, key or
            value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML ({error}); `train config` prints one") from error
    return from_text(text, base, where=str(path))


def from_text(text: str, base: Config | None = None, *, where: str = "") -> Config:
    """Read settings from TOML text like `from_toml`; ``where`` begins error messages."""
    try:
        tables = tomllib.loads(text)
    # ValueError also for numbers that are too long, RecursionError for deep nesting.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML ({error}); `train config` prints one") from error
    keys = {setting.key: setting for setting in settings()}
    values: dict[str, object] = {}
    for section, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(_unknown(section, keys, where))
        for name, value in table.items():
            if f"{section}.{name}" not in keys:
                raise ConfigError(_unknown(f"{section}.{name}", keys, where))
            values[name] = value
    return resolve(base or Config(), values, where=where)


def to_toml(config: Config) -> str:
    """Return all settings as TOML; `from_toml` reads them back to an equal `Config`."""
    lines: list[str] = []
    section = ""
    for setting in settings():
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        value = getattr(getattr(config, section), setting.name)
        lines.append(f"{setting.name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


@cache
def _sources() -> dict[str, ast.ClassDef]:
    """Parse the classes of ``train.config``, for the docstrings of their fields."""
    tree = ast.parse(inspect.getsource(config_module))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _docstrings(cls: str) -> dict[str, str]:
    """Return ``{field: docstring}``; each docstring is joined to one line."""
    docs: dict[str, str] = {}
    body = _sources()[cls].body
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            docs[node.target.id] = " ".join(str(after.value.value).split())
    return docs


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:
    """Return the type of a field's annotation, and its choices if it is a Literal."""
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    if Resolution in get_args(hint):
        return Resolution, ()
    origin = get_origin(hint) or hint
    assert origin in (bool, int, float, str, tuple), f"{hint}: use 0 or '' for none"
    return origin, ()


def _typed(setting: Setting, value: object, where: str) -> object:
    """Convert ``value`` to the type of its field.

    Raises:
        ConfigError: The value is of the wrong type, or not one of the choices.
    """
    prefix = f"{where}: " if where else ""
    if setting.kind is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            return tuple(items)
        expected = "whole numbers"
    elif setting.kind is Resolution:
        items = value if isinstance(value, list | tuple) else [value]
        try:
            return tuple(map(resolution, items))
        except ValueError as error:
            raise ConfigError(f"{prefix}{setting.key}: {error}") from None
    elif setting.choices:
        if value in setting.choices:
            return value
        near = difflib.get_close_matches(str(value), setting.choices, 1)
        expected = f"one of {', '.join(setting.choices)}"
        expected += f"; did you mean {near[0]}?" if near else ""
    elif setting.kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            problem = f"{prefix}{setting.key}: the number is too large"
            raise ConfigError(f"{problem}; expected less than 1e308") from None
    elif type(value) is setting.kind:
        return value
    else:
        expected = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "a string",
        }[setting.kind]
    raise ConfigError(f"{prefix}{setting.key} = {value!r}: expected {expected}")


def _unknown(name: str, known: Iterable[str], where: str) -> str:
    """Return the error line for an unknown key, with the most similar valid key."""
    known = list(known)
    last = name.rpartition(".")[2]
    last = SYNONYMS.get(last, last)
    # The right key in a wrong section is preferred to any misspelling.
    near = [key for key in known if key.rpartition(".")[2] == last]
    near += difflib.get_close_matches(name, known, 1, 0.4) + difflib.get_close_matches(
        last, [key.rpartition(".")[2] for key in known], 1, 0.4
    )
    remedy = f"did you mean {near[0]}?" if near else "`train config` lists all settings"
    return (
        f"{where}: {name}: no such setting; {remedy}"
        if where
        else f"{name}: no such setting; {remedy}"
    )


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Resolution):
        return _toml(value.to_json())
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " else f"\\u{ord(c):04x}" for c in escaped) + '"'
    return repr(value)
