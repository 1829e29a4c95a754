"""Names to classes, imported on first use: the mechanism behind the two registries; and which options a class takes."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sslnlp.errors import UserError, suggest

T = TypeVar("T")


def check_name(kind: str, name: str, registry: Mapping[str, str]) -> None:
    """Refuse what is neither a registry name nor a dotted path, without importing anything."""
    if name not in registry and ":" not in name:
        raise UserError(f"unknown {kind} {name!r}.{suggest(name, registry)} A path 'package.module:Class' works too.")


def find_class(kind: str, name: str, registry: Mapping[str, str], base: str) -> Any:
    """The class behind a registry name or a dotted path `pkg.mod:Class`; `base`, which it must be a subclass of, is
    written like that too, as it is imported only for a name that is one.

    Raises `UserError` when the name is unknown, the module does not import, or the class is not a `base`.
    """
    check_name(kind, name, registry)
    module_name, _, class_name = registry.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]
        advice = "; put the folder it is in on PYTHONPATH" if missing else ""
        raise UserError(f"{kind} {name!r}: cannot import {module_name!r} ({error}){advice}") from error
    found: Any = getattr(module, class_name, None)
    if found is None:
        classes = [word for word, value in vars(module).items() if isinstance(value, type)]
        raise UserError(f"{kind} {name!r}: {module_name} has no class {class_name!r}.{suggest(class_name, classes)}")
    base_module, _, base_name = base.partition(":")
    if not (isinstance(found, type) and issubclass(found, getattr(importlib.import_module(base_module), base_name))):
        raise UserError(f"{kind} {name!r}: {class_name} is not a subclass of sslnlp's {base_name}")
    return found


def on_first_use(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) that imports these names, module by module, when one is first asked for:
    who uses another part of the package does not wait for what they bring."""
    modules = {name: f"{package}.{module}" for module, given in names.items() for name in given}

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return find


def keywords_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a function and their resolved annotations, `**shared: Unpack[...]` included."""
    hints = typing.get_type_hints(function)
    found: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            found[parameter.name] = hints.get(parameter.name, Any)
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for options in typing.get_args(hints.get(parameter.name)):  # the TypedDict that is unpacked
                found |= typing.get_type_hints(options)
    return found


def bound_class(base: type[T], options: Mapping[str, Any], **made: Any) -> type[T]:
    """The subclass of `base` that `base.bound(options)` gives, with what these made of it.

    It stands in no module, so what pickles its instances is told how it came about.
    """
    own = dict(options)

    def reduced(self: T, protocol: Any) -> tuple[Any, ...]:
        parts: Any = base.__reduce_ex__(self, max(2, protocol))
        return _unpickled, (base, own), *parts[2:]

    return type(base.__name__, (base,), made | {"__module__": base.__module__, "__reduce_ex__": reduced})


def _unpickled(base: Any, options: Mapping[str, Any]) -> Any:
    cls = base.bound(options)
    return cls.__new__(cls)
