"""A call's arguments as text for people: the values, shortened, or only the names, or nothing.

Redacted arguments are never shown. A function declares them with ``@task(redact=("password",))``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from deferred_middleware.calls.callables import AnyCallable, looked_at, with_plain_call, without_partials
from deferred_middleware.errors.text import shortened

Shown = Literal["none", "names", "short"]
"""How much of the arguments is shown."""

REDACT_ATTRIBUTE: Final = "__deferred_redact__"
"""The attribute of a function that holds the names of the arguments to redact."""

_REDACTED: Final = "<redacted>"


def redacted_by(func: AnyCallable) -> frozenset[str]:
    """Return the names of the arguments of ``func`` that must not be shown."""
    # A bound method has the attributes of its function.
    names = looked_at(without_partials(func), REDACT_ATTRIBUTE)
    return names if isinstance(names, frozenset) else frozenset()


def show(func: AnyCallable, args: Sequence[object], kwargs: Mapping[str, object], shown: Shown) -> str:
    """Return the arguments as they are written between the parentheses of a call."""
    if shown == "none" and (args or kwargs):
        return "…"
    names = _names(func, len(args))
    if shown == "names":
        return ", ".join([*(name or f"#{number}" for number, name in enumerate(names, 1)), *kwargs])
    redacted = redacted_by(func)
    parts = [
        _REDACTED if redacted and (name is None or name in redacted) else shortened(value)
        for name, value in zip(names, args, strict=True)
    ]
    parts += [f"{name}={_REDACTED if name in redacted else shortened(value)}" for name, value in kwargs.items()]
    return ", ".join(parts)


def _names(func: AnyCallable, count: int) -> list[str | None]:
    """Return the names of the first ``count`` positional arguments; None for an argument without a name.

    For a wrapper, they are the names of the wrapped function's parameters.
    """
    names: list[str | None] = []
    try:
        for parameter in inspect.signature(with_plain_call(func)).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                names.append(parameter.name)
    except Exception:  # noqa: BLE001, S110 - some builtins have no signature, and logging must not fail
        pass
    return [*names, *[None] * count][:count]
