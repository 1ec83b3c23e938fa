"""Settings by name: listed, typed, replaced; read from TOML and written back to it.

What settings there are, ``train.config`` alone says; flags, files and errors are made from its
fields. A key that does not exist is refused with the nearest one that does.
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

from train import config as config_module
from train.config import Config
from train.errors import ConfigError

__all__ = ["SYNONYMS", "Setting", "from_text", "from_toml", "resolve", "settings", "to_toml"]

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
"""What other programs call a setting, for the error that names the one meant here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One field of one section, as a flag and a TOML key need it."""

    section: str
    """Name of the table in the TOML file."""

    name: str
    """Key in that table; unique over all sections."""

    kind: type
    """bool, int, float, str, or tuple for comma-separated whole numbers."""

    choices: tuple[str, ...]
    """The only values allowed; empty where any value of the kind may be."""

    default: Any
    """Value when neither file nor flag says otherwise."""

    help: str
    """The field's docstring."""

    @property
    def key(self) -> str:
        """``section.name``."""
        return f"{self.section}.{self.name}"


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting there is, section by section, in the order they are written above."""
    found = []
    for section, cls in get_type_hints(Config).items():
        hints = get_type_hints(cls)
        docs = _docstrings(cls.__name__)
        for item in dataclasses.fields(cls):
            kind, choices = _kind(hints[item.name])
            found.append(
                Setting(
                    section=section,
                    name=item.name,
                    kind=kind,
                    choices=choices,
                    default=item.default,
                    help=docs[item.name],
                )
            )
    names = [setting.name for setting in found]
    assert len(set(names)) == len(names), "a flag's name must say which section it belongs to"
    return tuple(found)


def resolve(base: Config, values: Mapping[str, object], *, where: str = "") -> Config:
    """``base`` with some settings replaced.

    Args:
        base: Where the settings that ``values`` leaves out come from.
        values: ``{name: value}``; lists stand for tuples.
        where: What the values came from, to begin an error with (a file's name).

    Raises:
        ConfigError: A name is unknown, or a value mistyped, out of range or contradictory.
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
    """The settings of a TOML file; what it leaves out is as in ``base`` (the defaults).

    Raises:
        ConfigError: The file cannot be read, is not TOML, or holds a section, key or value that
            is not valid; the message names the nearest valid key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML ({error}); `train config` prints one") from error
    return from_text(text, base, where=str(path))


def from_text(text: str, base: Config | None = None, *, where: str = "") -> Config:
    """As `from_toml`, from the text itself; ``where`` begins an error's message."""
    try:
        tables = tomllib.loads(text)
    # More than TOML's own error: of numbers too long, and of brackets too deep.
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
    """The whole of ``config`` as TOML, which `from_toml` reads back to an equal ``Config``."""
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
    """The classes of this module as they are written, for the docstrings of their fields."""
    tree = ast.parse(inspect.getsource(config_module))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _docstrings(cls: str) -> dict[str, str]:
    """``{field: docstring}``: the string that follows each field, on one line."""
    found: dict[str, str] = {}
    body = _sources()[cls].body
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:
    """What a field's annotation allows: its plain type, and its choices if it lists them."""
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    origin = get_origin(hint) or hint
    assert origin in (bool, int, float, str, tuple), f"{hint}: use 0 or '' for none"
    return origin, ()


def _typed(setting: Setting, value: object, where: str) -> object:
    """``value`` in the type of its field, or one line that says what was expected."""
    begin = f"{where}: " if where else ""
    if setting.kind is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            return tuple(items)
        expected = "whole numbers"
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
            found = f"{begin}{setting.key}: too large a number"
            raise ConfigError(f"{found}; expected one below 1e308") from None
    elif type(value) is setting.kind:
        return value
    else:
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[
            setting.kind
        ]
    raise ConfigError(f"{begin}{setting.key} = {value!r}: expected {expected}")


def _unknown(name: str, known: Iterable[str], where: str) -> str:
    """The line for a key that does not exist, with the nearest one that does."""
    known = list(known)
    last = name.rpartition(".")[2]
    last = SYNONYMS.get(last, last)
    # A right key in a wrong section is nearer than any misspelling.
    near = [key for key in known if key.rpartition(".")[2] == last]
    near += difflib.get_close_matches(name, known, 1, 0.4) + difflib.get_close_matches(
        last, [key.rpartition(".")[2] for key in known], 1, 0.4
    )
    remedy = f"the nearest valid one is {near[0]}" if near else "`train config` lists them all"
    return f"{where}: {name}: no such setting; {remedy}" if where else f"{name}: {remedy}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " else f"\\u{ord(c):04x}" for c in escaped) + '"'
    return repr(value)
