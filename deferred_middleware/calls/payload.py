"""A call as bytes and back: the pickle of ``(callable, args, kwargs)``, as the older library writes it.

Versions of the app with either library can therefore read each other's payloads: ``google.appengine.ext.deferred.run``
reads what :func:`dumps` writes, and :func:`loads` reads what ``google.appengine.ext.deferred.serialize`` writes.

If an argument does not pickle, the error names the smallest part that does not, such as ``args[0].session``.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import traceback
import types
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.calls import references
from deferred_middleware.calls.call import Call, Content
from deferred_middleware.calls.callables import own_attributes, plain_method
from deferred_middleware.config.process import current_settings
from deferred_middleware.errors import CallableNotFoundError, PayloadError, UnpicklableArgumentError
from deferred_middleware.errors.text import text_of
from deferred_middleware.wire.compression import ZLIB_PREFIX, decompress

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings

_MAX_DEPTH: Final = 40
"""The longest path to a part that does not pickle; a longer path is cut off."""
_WAY_OUT: Final = "Pass what identifies it (a key, an id, a path) and open or load it in the task."
_FRAMED: Final = (b"\x80\x04\x95", b"\x80\x05\x95")  # the start of a pickle with frames
_FRAME_BYTES: Final = struct.Struct("<Q")
# Python 3.13 names this module in pickled paths (https://github.com/python/cpython/issues/133789); 3.14 has it too.
_PATHS_OF_3_13: Final = b"pathlib._local"
_READS_PATHS_OF_3_13: Final = sys.version_info >= (3, 13)


def dumps(call: Call, protocol: int) -> bytes:
    """Return the payload of ``call``.

    Raises:
        NotImportableError: the callable can't be found by import.
        UnpicklableArgumentError: an argument can't be pickled, or belongs to the ``__main__`` script.
    """
    func, kwargs = call.func, call.kwargs
    if type(func) is not types.FunctionType or "__" in func.__name__:  # the others are pickled as they are
        func = references.reference_to(func)
    try:
        content = func, call.args, kwargs if type(kwargs) is dict else dict(kwargs)
        data = _pickled(content, protocol)
        # An exception needs the name of its class, besides the callable's.
        problem = _unloadable(content) if protocol < 4 or data.count(pickle.STACK_GLOBAL) > 1 else None
    except Exception as error:
        references.explain_unimportable(call.func)
        raise _unpicklable(call, f"can't be pickled ({text_of(error)})", main_is_wrong=False) from error
    if problem is not None:
        raise _unpicklable(call, f"can't be run: {problem}", main_is_wrong=False)
    if b"__main__" in data and mentions_main(data):
        raise _unpicklable(call, "refers to __main__", main_is_wrong=True)
    return data


def _pickled(value: object, protocol: int) -> bytes:
    try:
        return pickle.dumps(value, protocol)
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - raised again here, unless names help
        return references.dumps_by_name(value, protocol)


def loads(data: bytes, settings: Settings | None = None, *, legacy: bool = False) -> Call:
    """Return the call in a payload; see :func:`content_of`. The default settings are the process's."""
    return Call.of(content_of(data, settings or current_settings(), legacy=legacy))


def content_of(data: bytes, settings: Settings, *, legacy: bool) -> Content:
    """Return the content of a payload. Loading runs code that the payload names, so the sender must be trusted.

    Set ``legacy`` if the content is passed on to :func:`deferred_middleware.execution.legacy.resolved`.

    Raises:
        NotAllowedError: the callable is not in ``DEFERRED_ALLOWED_CALLABLES``. Nothing was imported.
        CallableNotFoundError: this version of the app lacks the callable or the class of an argument.
        PayloadError: the payload can't be read for any other reason.
    """
    if data.startswith(ZLIB_PREFIX):
        data = _decompressed(data, settings.max_payload_bytes)
    allowed = settings.allowed_callables
    if allowed:
        from deferred_middleware.calls import allowlist  # few apps have a list

        allowlist.check_payload(data, allowed, legacy=legacy)
    try:
        if not _READS_PATHS_OF_3_13 and _PATHS_OF_3_13 in data:
            content, end = _load_from_stream(data, _UnpicklerOfNewerPythons)
        elif data.startswith(_FRAMED) and _FRAME_BYTES.unpack_from(data, 3)[0] == len(data) - 11:
            # The payload is one frame and nothing else (PEP 3154), as pickle writes it up to 64 KB. Without a stream,
            # loading it takes half the time.
            content, end = pickle.loads(data), len(data)  # noqa: S301 - the caller trusts the sender
        else:
            content, end = _load_from_stream(data)
    except (ImportError, AttributeError) as error:
        raise CallableNotFoundError(
            f"this version of the app lacks something that the task needs: {text_of(error)}"
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Loading runs the arguments' own code, such as __setstate__, which may raise anything.
        problem = "is empty" if not data else f"({len(data):,} bytes) can't be unpickled"
        raise PayloadError(f"the payload {problem}: {type(error).__name__}: {text_of(error)}") from error
    if end != len(data):
        raise PayloadError(f"the payload ends after {end:,} of {len(data):,} bytes")
    if not (isinstance(content, tuple) and len(content) == 3):
        raise _not_a_call(content)
    func: Any
    func, args, kwargs = content
    if type(func) is not types.FunctionType or type(args) is not tuple or type(kwargs) is not dict:
        if not (callable(func) and isinstance(args, (tuple, list)) and isinstance(kwargs, dict)):
            raise _not_a_call(content)
        func, args = plain_method(func), tuple(args)
    if allowed and not (legacy and allowlist.is_legacy_wrapper(func)):
        allowlist.check_callable(func, allowed)
    return func, args, kwargs


class _UnpicklerOfNewerPythons(pickle.Unpickler):
    """Finds the classes of a newer Python under the names that they have in this one."""

    def find_class(self, module: str, name: str, /) -> Any:
        return super().find_class("pathlib" if module == _PATHS_OF_3_13.decode() else module, name)


def _load_from_stream(data: bytes, unpickler: type[pickle.Unpickler] = pickle.Unpickler) -> tuple[object, int]:
    """Return the object that is pickled at the start of ``data``, and the position of its end."""
    source = as_stream(data)
    return unpickler(source).load(), source.tell()


def as_stream(data: bytes) -> io.BufferedReader:
    """Return a stream from which the unpickler reads ``data`` byte after byte, wherever its frames end.

    If the unpickler reads a frame from a stream, and an opcode crosses the end of the frame, the unpickler skips the
    rest of the frame. It would load something else than :func:`deferred_middleware.wire.pickle_tree.sketch` reads. This
    stream shows the unpickler all of ``data`` at the first look, so that it never reads again (CPython:
    ``Modules/_pickle.c``, ``_Unpickler_ReadFromFile``).
    """
    return io.BufferedReader(io.BytesIO(data), max(len(data), 1))


def _decompressed(data: bytes, limit_bytes: int) -> bytes:
    """Return the content of compressed data if it is complete and has at most ``limit_bytes``."""
    try:
        found = decompress(data, limit_bytes)
    except zlib.error as error:
        raise PayloadError(f"the payload ({len(data):,} bytes) can't be decompressed: {error}") from error
    if found.exceeds_limit:
        raise PayloadError(
            f"the payload takes more than {limit_bytes:,} bytes, the value of DEFERRED_MAX_PAYLOAD_BYTES"
        )
    if found.is_cut_off:
        raise PayloadError(f"the end of the compressed payload ({len(data):,} bytes) is missing")
    if found.trailing_bytes:
        end = len(data) - found.trailing_bytes
        raise PayloadError(f"the compressed payload ends after {end:,} of {len(data):,} bytes")
    return found.content


def _not_a_call(content: object) -> PayloadError:
    return PayloadError(f"the payload is a pickled {type(content).__name__}, not a (callable, args, kwargs)")


def _unloadable(value: object) -> str | None:
    """Return what is wrong with an exception in ``value`` that pickles but can't be unpickled; None if all can."""
    from deferred_middleware.calls import exception_arguments  # few calls have an object as an argument

    for exception in exception_arguments.exceptions_in(value):
        data = _pickled(exception, pickle.HIGHEST_PROTOCOL)
        try:
            pickle.loads(data)  # noqa: S301 - pickled above
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's own code, which may raise anything
            reason = traceback.format_exception_only(type(error), error)[-1].strip()
            return (
                f"{type(exception).__name__} pickles but can't be unpickled ({reason}), so the task could not run. "
                "Pass its text and what the task needs of it, or give the class a __reduce__ method that returns the "
                "arguments of its __init__."
            )
    return None


def _unpicklable(call: Call, problem: str, *, main_is_wrong: bool) -> UnpicklableArgumentError:
    """Return the error that names the argument that does not pickle, or describes ``problem`` if there is none."""
    label = str(call.label)
    arguments: dict[str, Any] = {f"args[{i}]": value for i, value in enumerate(call.args)}
    arguments |= {f"kwargs[{name!r}]": value for name, value in call.kwargs.items()}
    path, problem = find_unpicklable(arguments, main_is_wrong=main_is_wrong) or ("the call", f" {problem}")
    return UnpicklableArgumentError(label, path, f"{label} can't be deferred: {path}{problem}")


def find_unpicklable(values: Mapping[str, object], *, main_is_wrong: bool) -> tuple[str, str] | None:
    """Return the path of the smallest part that does not pickle, and its problem; None if every value pickles.

    An exception that can't be unpickled counts too. ``values`` maps paths to the values to search. If
    ``main_is_wrong``, a part that refers to the ``__main__`` script counts too: in the process that runs the task,
    ``__main__`` is another script.
    """
    for path, value in values.items():
        problem = _problem(value, main_is_wrong)
        if problem is not None:
            return _smallest(path, value, problem, main_is_wrong)
    return None


def mentions_main(data: bytes) -> bool:
    """Tell whether a pickle refers to the ``__main__`` module; a text that contains the name does not count."""
    from deferred_middleware.wire.pickle_tree import sketch  # few payloads contain the name

    return any(name.module == "__main__" for name in sketch(data, max_opcodes=len(data)).names)


def _problem(value: object, main_is_wrong: bool) -> str | None:
    try:
        data = _pickled(value, pickle.HIGHEST_PROTOCOL)
        unloadable = _unloadable(value)
    except RecursionError:
        return f": {type(value).__name__} is nested too deep for pickle. Store it, and pass its key."
    except Exception as error:  # noqa: BLE001 - pickling runs the user's own code, which may raise anything
        return f": {type(value).__name__} can't be pickled ({text_of(error)}). {_WAY_OUT}"
    if main_is_wrong and b"__main__" in data and mentions_main(data):
        return (
            f": {type(value).__name__} belongs to the script that was started (__main__). In the process that runs the "
            "task, __main__ is another script. Move it to a module, and import it from there."
        )
    return None if unloadable is None else f": {unloadable}"


def _smallest(path: str, value: object, problem: str, main_is_wrong: bool) -> tuple[str, str]:
    if "nested too deep" in problem:
        return path, problem  # its parts are nested too deep as well
    for _ in range(_MAX_DEPTH):
        parts: list[tuple[str, object]] = []
        with contextlib.suppress(Exception):  # the iterators of the user's own classes may raise anything
            parts.extend(_parts(value))
        for step, part in parts:
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
        for name, item in own_attributes(value).items() if not isinstance(value, type) else ():
            yield f".{name}", item
        for cls in type(value).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                slot = cls.__dict__.get(name)
                if type(slot) is types.MemberDescriptorType:
                    with contextlib.suppress(AttributeError):  # the slot is empty
                        yield f".{name}", slot.__get__(value)


def _short(key: object) -> str:
    return repr(key) if isinstance(key, (str, int, bool, float, bytes)) else f"<{type(key).__name__}>"
