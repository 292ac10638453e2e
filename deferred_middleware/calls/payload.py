"""A call as bytes and back: the pickle of ``(callable, args, kwargs)``, as the older library writes it.

Versions therefore mix in both directions: ``google.appengine.ext.deferred.run`` reads what :func:`dumps` writes, and
:func:`loads` reads what ``google.appengine.ext.deferred.serialize`` wrote.
"""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.calls import allowlist
from deferred_middleware.calls.call import Call, Content
from deferred_middleware.calls.callables import METHOD_ATTRIBUTE, explain_unimportable, reference_to
from deferred_middleware.calls.unpicklable import culprit, mentions_main
from deferred_middleware.config.settings import current_settings
from deferred_middleware.errors import CallableNotFoundError, PayloadError, UnpicklableArgumentError

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings

_FRAMED: Final = (b"\x80\x04\x95", b"\x80\x05\x95")  # what a pickle in frames begins with
_FRAME_BYTES: Final = struct.Struct("<Q")
_ZLIB: Final = b"\x78"  # what zlib.compress begins with (RFC 1950); no pickle does


def dumps(call: Call, protocol: int) -> bytes:
    """Return the payload of ``call``.

    Raises:
        NotImportableError: the callable can't be found again by import.
        UnpicklableArgumentError: an argument can't be pickled, or belongs to the ``__main__`` script.
    """
    func = reference_to(call.func)
    kwargs = call.kwargs
    try:
        data = pickle.dumps((func, call.args, kwargs if type(kwargs) is dict else dict(kwargs)), protocol)
    except Exception as error:
        explain_unimportable(call.func)
        raise _unpicklable(call, error) from error
    if b"__main__" in data and mentions_main(data):
        raise _unpicklable(call, None)
    return data


def loads(data: bytes, settings: Settings | None = None, *, legacy: bool = False) -> Call:
    """Return the call in a payload, as :func:`content_of` does with the process's settings where none are given."""
    return Call.of(content_of(data, settings or current_settings(), legacy=legacy))


def content_of(data: bytes, settings: Settings, *, legacy: bool) -> Content:
    """Return what a payload holds. This runs what the payload says: only for requests that are trusted.

    ``legacy`` says that the call is given to :func:`deferred_middleware.execution.legacy.resolved`.

    Raises:
        NotAllowedError: the callable is not in ``DEFERRED_ALLOWED_CALLABLES``; nothing of it was imported.
        CallableNotFoundError: this version of the app lacks the callable or the class of an argument.
        PayloadError: anything else went wrong in reading it.
    """
    if data.startswith(_ZLIB):
        data = _decompressed(data, settings.max_payload_bytes)
    if settings.allowed_callables:
        allowlist.check_payload(data, settings.allowed_callables, legacy=legacy)
    try:
        if data.startswith(_FRAMED) and _FRAME_BYTES.unpack_from(data, 3)[0] == len(data) - 11:
            # One frame and nothing else (PEP 3154), as pickle writes up to 64 KB: it needs no stream, which takes as
            # long as the loading itself.
            content, end = pickle.loads(data), len(data)  # noqa: S301 - the sender is trusted before this is called
        else:
            content, end = _streamed(data)
    except (ImportError, AttributeError) as error:
        raise CallableNotFoundError(f"this version of the app lacks what the task needs: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Loading runs the arguments' own code (__setstate__ and its like), which may raise anything.
        problem = "is empty" if not data else f"({len(data):,} bytes) can't be unpickled"
        raise PayloadError(f"the payload {problem}: {type(error).__name__}: {error}") from error
    if end != len(data):
        raise PayloadError(f"the payload ({len(data):,} bytes) is followed by {len(data) - end:,} others")
    if not (isinstance(content, tuple) and len(content) == 3):
        raise _no_call(content)
    func: Any
    func, args, kwargs = content
    if not (callable(func) and isinstance(args, (tuple, list)) and isinstance(kwargs, dict)):
        raise _no_call(content)
    func = getattr(func, METHOD_ATTRIBUTE, func)
    if settings.allowed_callables and not (legacy and allowlist.is_legacy_wrapper(func)):
        allowlist.check_callable(func, settings.allowed_callables)
    return func, args if type(args) is tuple else tuple(args), kwargs


def _streamed(data: bytes) -> tuple[object, int]:
    """Return what is pickled at the beginning of ``data``, and where that ends."""
    stream = io.BytesIO(data)
    # Before protocol 4, which has frames, each opcode is a call unless the stream lets it look ahead.
    source = stream if data.startswith(_FRAMED) else io.BufferedReader(stream)
    return pickle.Unpickler(source).load(), source.tell()  # noqa: S301 - as above


def _decompressed(data: bytes, limit_bytes: int) -> bytes:
    """Return what was compressed, if that is whole and not more than ``limit_bytes``."""
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(data, limit_bytes + 1)
    except zlib.error as error:
        raise PayloadError(f"the payload ({len(data):,} bytes) can't be decompressed: {error}") from error
    if len(content) > limit_bytes:
        raise PayloadError(
            f"the payload takes more than {limit_bytes:,} bytes, which DEFERRED_MAX_PAYLOAD_BYTES allows"
        )
    if not decompressor.eof or decompressor.unused_data:
        raise PayloadError(f"the compressed payload ({len(data):,} bytes) is cut off, or something follows it")
    return content


def _no_call(content: object) -> PayloadError:
    return PayloadError(f"the payload is a pickled {type(content).__name__}, not a (callable, args, kwargs)")


def _unpicklable(call: Call, error: Exception | None) -> UnpicklableArgumentError:
    """Return the error that names the argument that does not pickle."""
    label = str(call.label)
    arguments: dict[str, Any] = {f"args[{i}]": value for i, value in enumerate(call.args)}
    arguments |= {f"kwargs[{name!r}]": value for name, value in call.kwargs.items()}
    found = culprit(arguments, main_is_wrong=error is None)
    if found is None:
        found = "the call", f" can't be pickled ({error})"
    path, problem = found
    return UnpicklableArgumentError(label, path, f"{label} can't be deferred: {path}{problem}")
