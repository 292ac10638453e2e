"""Which part of a value does not pickle: an error should name ``args[0].session``, not just a type."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator, Mapping
from typing import Final

_MAX_DEPTH: Final = 40
"""How far down a path is followed; deeper, the path so far says enough."""
_WAY_OUT: Final = "Pass what identifies it (a key, an id, a path) and open or load it in the task."


def culprit(values: Mapping[str, object], *, main_is_wrong: bool) -> tuple[str, str] | None:
    """Return the path of the smallest part that does not pickle, and what is wrong with it; None if all do.

    ``values`` maps the paths to start from to what is there. With ``main_is_wrong`` a part counts that pickles but
    names something of the ``__main__`` script, which is another script where the task runs.
    """
    for path, value in values.items():
        problem = _problem(value, main_is_wrong)
        if problem is not None:
            return _smallest(path, value, problem, main_is_wrong)
    return None


def mentions_main(data: bytes) -> bool:
    """Tell whether a pickle refers to the ``__main__`` module; its name alone may be in anybody's string."""
    pushed: list[object] = []  # what was put on the unpickler's stack, as far as it is text
    memo: dict[object, object] = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST"):
            if str(argument).startswith("__main__ "):
                return True
            pushed.append(None)
        elif opcode.name == "STACK_GLOBAL":
            if pushed[-2:-1] == ["__main__"]:
                return True
            pushed.append(None)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = pushed[-1]
        elif "PUT" in opcode.name:
            memo[argument] = pushed[-1]
        elif "GET" in opcode.name:
            pushed.append(memo.get(argument))
        elif opcode.name not in ("PROTO", "FRAME"):
            pushed.append(argument if "UNICODE" in opcode.name else None)
    return False


def _problem(value: object, main_is_wrong: bool) -> str | None:
    try:
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except RecursionError:
        return f": {type(value).__name__} is nested too deep for pickle. Store it, and pass its key."
    except Exception as error:  # noqa: BLE001 - pickling runs the user's own code, which may raise anything
        return f": {type(value).__name__} can't be pickled ({error}). {_WAY_OUT}"
    if main_is_wrong and b"__main__" in data and mentions_main(data):
        return (
            f": {type(value).__name__} belongs to the script that was started (__main__), which is another one "
            "where the task runs. Move it to a module of its own and import it from there."
        )
    return None


def _smallest(path: str, value: object, problem: str, main_is_wrong: bool) -> tuple[str, str]:
    if "nested too deep" in problem:
        return path, problem  # every part of it is nested too deep as well
    for _ in range(_MAX_DEPTH):
        for step, part in _parts(value):
            found = _problem(part, main_is_wrong)
            if found is not None:
                path, value, problem = path + step, part, found
                break
        else:
            break
    return path, problem


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f" (key {type(key).__name__})", key
            yield f"[{_short(key)}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield " (an element)", item
    else:
        for name, item in getattr(value, "__dict__", {}).items() if not isinstance(value, type) else ():
            yield f".{name}", item
        for cls in type(value).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name):
                    yield f".{name}", getattr(value, name)


def _short(key: object) -> str:
    return repr(key) if isinstance(key, (str, int, bool, float, bytes)) else f"<{type(key).__name__}>"
