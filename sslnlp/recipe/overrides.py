"""Strict `key=value` overrides: the key must exist, the value must be of the type the code beside it declares."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from sslnlp.errors import UserError, suggest
from sslnlp.registry import keywords_of

log = logging.getLogger(__name__)

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """`["train.lr=1e-3", ...]` -> `{"train.lr": "1e-3"}`. The last one wins, and says so; else a `UserError`.

    Keys that several runs share, and those of one of them after these, are given like that on purpose.
    """
    pairs: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not all(part.isidentifier() for part in key.strip().split(".")):
            raise UserError(f"expected key=value, got {argument!r} (for example train.steps=1000)")
        key = key.strip()
        if value.startswith("~/"):  # which a shell expands where a word begins, and not behind `=`
            value = os.path.expanduser(value)
        if pairs.get(key, value) != value:
            log.warning("%s is given more than once: %s counts, not %s", key, value, pairs[key])
        pairs[key] = value  # else as typed: a prefix may end with a space
    return pairs


def fields_of(config: Any) -> dict[str, Any]:
    """The public fields of a configuration dataclass (class or instance) and their resolved annotations."""
    cls = config if isinstance(config, type) else type(config)
    hints = _hints_of(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


@functools.cache  # asked for each key that is set
def _hints_of(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def coerce(key: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` wants it; text is read leniently (`1_000`, `1e3`, `none`), anything lossy is refused."""
    try:
        return _coerce(value, annotation)
    except (ValueError, TypeError) as error:
        detail = f" ({error})" if isinstance(error, UserError) else ""
        raise UserError(f"{key} must be {_describe(annotation)}, got {value!r}{detail}") from None


def keywords(function: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments as keyword arguments of `function`, as strict as the keys of a recipe."""
    return _as_declared(parse(arguments), keywords_of(function))


def _as_declared(given: Mapping[str, Any], accepted: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in accepted:
            raise UserError(f"unknown key {name!r}.{suggest(name, accepted)}")
    return {name: coerce(name, value, accepted[name]) for name, value in given.items()}


def _coerce(value: Any, annotation: Any) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return _json_or_text(value)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, args)
    if origin is Literal:
        return _coerce_literal(value, args)
    if annotation is type(None):
        if value is None or (isinstance(value, str) and value.lower() in {"none", "null"}):
            return None
    elif annotation is bool:
        return _coerce_bool(value)
    elif annotation is int:
        return _coerce_int(value)
    elif annotation is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
    elif annotation in (str, Path):
        if isinstance(value, (str, Path)):
            return annotation(value)
    elif origin in (list, tuple, set, frozenset) or _is_sequence(origin):
        return _coerce_sequence(value, origin, args)
    elif annotation is dict or origin is dict or _is_mapping(origin):
        return _coerce_mapping(value, args)
    elif dataclasses.is_dataclass(annotation):
        return _coerce_dataclass(value, annotation)
    raise ValueError(value)


def _coerce_union(value: Any, members: Sequence[Any]) -> Any:
    # Narrow types first: "none" is None before it is text, "3" is a number before it is text, "a,b" a list.
    def rank(member: Any) -> int:
        order: list[Any] = [type(None), bool, int, float]
        if member in order:
            return order.index(member)
        return 9 if member is str else 5

    plain_text = isinstance(value, str) and not ("," in value or value[:1] in "[{")
    for member in sorted(members, key=rank):
        if plain_text and rank(member) == 5 and str in members:
            continue  # `data.train=corpus.txt` stays text although a list is accepted too
        try:
            return _coerce(value, member)
        except (ValueError, TypeError):
            continue
    raise ValueError(value)


def _coerce_literal(value: Any, accepted: Sequence[Any]) -> Any:
    for literal in accepted:
        if value == literal or (isinstance(value, str) and value == str(literal)):
            return literal
    raise ValueError(value)


def _coerce_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise ValueError(value)


def _coerce_int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)  # 1e3 is a whole number too
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int):
        return value
    raise ValueError(value)


def _is_sequence(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _coerce_sequence(value: Any, origin: Any, args: Sequence[Any]) -> Any:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else [part.strip() for part in value.split(",") if part]
    if isinstance(value, (str, Mapping)) or not isinstance(value, (Sequence, set, frozenset)):
        raise ValueError(value)
    kind = origin if origin in (tuple, set, frozenset) else list
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise ValueError(value)
        return tuple(_coerce(item, each) for item, each in zip(value, args, strict=True))
    return kind(_coerce(item, args[0] if args else Any) for item in value)


def _coerce_mapping(value: Any, args: Sequence[Any]) -> dict[Any, Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError(value)
    kinds = args or (str, Any)
    return {_coerce(k, kinds[0]): _coerce(v, kinds[1]) for k, v in value.items()}


def _coerce_dataclass(value: Any, cls: Any) -> Any:
    if isinstance(value, cls):
        return value
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError(value)
    return cls(**_as_declared(value, fields_of(cls)))


def _json_or_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lower() in {"none", "true", "false"}:
        return {"none": None, "true": True, "false": False}[value.lower()]
    try:
        return json.loads(value)
    except ValueError:
        return value


def _describe(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    if annotation in plain:
        return plain[annotation]
    if origin in (list, tuple, set, frozenset) or _is_sequence(origin):
        return "a list (a,b,c or JSON)"
    if annotation is dict or origin is dict or _is_mapping(origin):
        return "a JSON object (which a shell wants in quotes)"
    return getattr(annotation, "__name__", str(annotation))
