"""The public interface, as ``docs/policy.rst`` promises it: a change of it shows in a file that is reviewed.

If a change is wanted, write the file anew with ``python -m tests.unit.test_public_interface``, and say it in the
changelog.
"""

from __future__ import annotations

import difflib
import enum
import importlib
import inspect
import types
from collections.abc import Iterator
from pathlib import Path

SNAPSHOT = Path(__file__).with_name("data") / "public_interface.txt"
MODULES = (
    "deferred_middleware",
    "deferred_middleware.errors",
    "deferred_middleware.errors.sdk",
    "deferred_middleware.compat.deferred",
    "deferred_middleware.compat.tasks",
    "deferred_middleware.testing",
)
_OF_WEBAPP2 = ("DeferredHandler",)
"""What needs webapp2, which is not installed everywhere."""


def parameters(value: object) -> str:
    """Return the parameters of a callable without their types, whose texts differ between versions of Python."""
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type] # what can't be called raises
    except (TypeError, ValueError):
        return ""
    kept = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default=parameter.default if isinstance(parameter.default, (str, int, float, type(None))) else ...,
        )
        if parameter.default is not inspect.Parameter.empty
        else parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(kept))


def described(name: str, value: object) -> Iterator[str]:
    """Yield a line for a public name, and one for each public attribute of a class."""
    if not inspect.isclass(value):
        kind = "function" if callable(value) else type(value).__name__
        yield f"{name}{parameters(value)}: {kind}"
        return
    base = ", ".join(parent.__name__ for parent in value.__bases__)
    yield f"{name}({base}): class"
    if not value.__module__.startswith("deferred_middleware"):
        return
    if issubclass(value, enum.Enum):
        yield from (f"{name}.{member.name} = {member.value!r}" for member in value)
        return
    # Before Python 3.11, a protocol has one without being made.
    if "__init__" in vars(value) and not getattr(value, "_is_protocol", False):
        yield f"{name}{parameters(value)}"
    for attribute, found in sorted(vars(value).items()):
        if attribute.startswith("_"):
            continue
        if isinstance(found, (staticmethod, classmethod)):
            found = found.__func__
        shown = parameters(found) if isinstance(found, types.FunctionType) else ""
        yield f"{name}.{attribute}{shown}"


def interface() -> str:
    """Return all public names, as they are now."""
    lines = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        public = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module_name
        ]
        lines.append(f"[{module_name}]")
        for name in sorted(public):
            if name in _OF_WEBAPP2:
                lines.append(f"{name}: class, made when it is first used")
            else:
                lines += described(name, getattr(module, name))
        lines.append("")
    return "\n".join(lines)


def test_the_public_interface_is_the_one_that_was_reviewed() -> None:
    """Each public name, its parameters and their defaults are those in the file."""
    stored, now = SNAPSHOT.read_text(), interface()
    difference = "\n".join(difflib.unified_diff(stored.splitlines(), now.splitlines(), "reviewed", "now", lineterm=""))
    assert stored == now, f"\n{difference}\n\nIf this is wanted: python -m tests.unit.test_public_interface"


if __name__ == "__main__":
    SNAPSHOT.write_text(interface())
