"""Parsed JSON into dataclasses, strictly: a field that is missing or unfit is named.

The dataclass's own annotations are the schema. Taken are ``int`` (0 or more), ``float``, ``str``,
``T | None``, ``list[T]``, ``dict[str, T]``, ``dict[str, Any]`` and dataclasses of these; an
annotation of another kind is a fault of this program. Fields that the dataclass lacks are ignored.
"""

import dataclasses
import json
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from shardify.errors import ManifestError

__all__ = ["record", "unfit"]

T = TypeVar("T")

_Read = Callable[[object, str], Any]


def record(kind: type[T], document: object, where: str) -> T:
    """Build the dataclass ``kind`` from a JSON object.

    Args:
        kind: What to build.
        document: As ``json.loads`` gives it.
        where: What to call it in an error.

    Raises:
        ManifestError: A field is missing or of the wrong type.
    """
    if not isinstance(document, dict):
        raise unfit(where, document, "an object")
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(kind):  # type: ignore[arg-type]  # every caller passes one
        if spec.name in document:
            values[spec.name] = _reader(spec.type)(document[spec.name], f"{where}: {spec.name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ManifestError(f"{where}: no field {spec.name!r}; build the data set again")
    return kind(**values)


def unfit(where: str, value: object, expected: str) -> ManifestError:
    """What to raise for a value that is not what was expected."""
    return ManifestError(
        f"{where}: found {json.dumps(value)[:60]}; expected {expected}; build the data set again"
    )


def _reader(annotation: Any) -> _Read:
    """What reads a value of this annotation."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return lambda value, where: record(annotation, value, where)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is list:
        return _list(_reader(inner[0]))
    if origin is dict:
        return _dict(_reader(inner[1]))
    assert origin is UnionType and inner[1] is NoneType, annotation
    given = _reader(inner[0])
    return lambda value, where: None if value is None else given(value, where)


def _integer(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise unfit(where, value, "a whole number, 0 or more")
    return value


def _number(value: object, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise unfit(where, value, "a number")
    return float(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise unfit(where, value, "a text")
    return value


def _anything(value: object, where: str) -> object:
    del where
    return value


_PLAIN: dict[Any, _Read] = {int: _integer, float: _number, str: _text, Any: _anything}


def _list(read: _Read) -> _Read:
    def reader(value: object, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise unfit(where, value, "a list")
        return [read(item, f"{where}[{place}]") for place, item in enumerate(value)]

    return reader


def _dict(read: _Read) -> _Read:
    def reader(value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise unfit(where, value, "an object")
        return {name: read(item, f"{where}.{name}") for name, item in value.items()}

    return reader
