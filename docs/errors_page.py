"""Write ``errors.rst``, the manual's reference of errors, from the classes and this advice.

Run ``python docs/errors_page.py``. A test compares the page with the classes, and finds a public error without advice.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import deferred_middleware
from deferred_middleware import errors, testing
from deferred_middleware.errors import sdk

PAGE = Path(__file__).with_name("errors.rst")
_HEAD = """\
======
Errors
======

..
    Written by errors_page.py.

Each error of the library has a place on this page, with an anchor: ``#error-`` and the name of its
class, in lower case. All of them are a ``DeferredError``, except ``DeferredWarning``,
``TaskRunError`` and the two exceptions of the SDK's deferred library. An error's message says what
is wrong, with which value, and what to do. :doc:`answers` lists the answers of a queue, with the
error of each.
"""

ADVICE: Mapping[str, Mapping[str, str]] = {
    "All errors": {
        "DeferredError": "Catch it to catch every error of the library. Catch a narrower class where you can act.",
        "DeferredWarning": "Follow the message. Filter the category with the module ``warnings`` if it is intended.",
    },
    "The call": {
        "CallError": "See the classes below; the attribute ``label`` says which call it is.",
        "NotCallableError": "Give ``defer`` the function itself and its arguments, not the result of a call.",
        "NotImportableError": "Move the function to the top of a module that the app can import.",
        "ArgumentsError": "Compare the arguments with the function's signature.",
        "UnpicklableArgumentError": "Pass plain data, such as a key in place of the object with this key.",
        "NotAllowedError": "Add the callable to ``DEFERRED_ALLOWED_CALLABLES`` if tasks may run it.",
    },
    "The options": {
        "UnknownOptionError": "Correct the option's name; ``suggestion`` is the most similar one.",
        "OptionError": "Give the option a value that the message lists.",
        "InvalidQueueNameError": "Use letters, digits and hyphens, at most 100.",
        "InvalidTaskNameError": "Use letters, digits, hyphens and underscores, at most 500.",
        "InvalidEtaError": "Give one of them, with a time that is at most 30 days away.",
        "InvalidUrlError": "Give a path that begins with a slash, without a scheme and a host.",
        "InvalidHeaderError": "Choose a name that neither the platform nor the library uses, and a value of one line.",
        "InvalidRetryOptionsError": "Correct the argument that the message names.",
        "InvalidDispatchDeadlineError": "Give a number of seconds within the limits in the message.",
    },
    "The queue": {
        "EnqueueError": "If ``maybe_enqueued`` is false, you can defer the call again. If it is true, the task may "
        "run; choose a name with ``_name``, so that another attempt can't add it twice.",
        "NotAllEnqueuedError": "Look at ``report.failures``, and defer these calls again.",
        "NoEngineError": "Wrap the app in ``wrap_wsgi_app``, run it under ``deferred-middleware serve``, or set "
        "``DEFERRED_ENGINE``. In tests, use ``capture_tasks``.",
        "TargetError": "Give a target that this engine can reach; on Cloud Run, add it to ``DEFERRED_SERVICE_URLS``.",
        "TransactionError": "Call ``defer`` inside the transaction, or without ``_transactional``.",
        "TransactionLimitError": "Defer one call that defers the others, or enqueue after the commit.",
        "CrossGroupError": "Open the transaction with ``xg=True``.",
        "TaskTooLargeError": "Store the data in the datastore or in a bucket, and defer the call with its key; see "
        ":doc:`large-payloads`.",
    },
    "The settings": {
        "SettingsError": "Correct the variable; see :doc:`settings`.",
        "SecretKeyMissingError": "Set ``DEFERRED_SECRET_KEYS``; see :doc:`security`.",
        "LocationError": "Set the variable in the message to the project or the region of the queues.",
    },
    "A task's request": {
        "UntrustedRequestError": "If the request is one of your tasks, compare the keys of the process that defers "
        "with those of the process that runs tasks; see :doc:`security`.",
        "BodyError": "Look at what stands between the queue and the app: it may change or limit bodies.",
        "TaskContentError": "Deploy the version that can read the call. The queue tries the task again until then.",
        "PayloadError": "Find out who adds such tasks. If it is an older library, see :doc:`migrating-from-deferred`.",
        "PayloadMissingError": "Look whether something deletes the entities of payloads; see :doc:`large-payloads`.",
        "PayloadFinishedError": "Nothing: the call has returned in an earlier attempt.",
        "CallableNotFoundError": "Keep the old name for as long as tasks with it may wait, or deploy the new version.",
        "WarmupError": "Correct the name of the module in ``DEFERRED_WARMUP_MODULE``, or its imports.",
        "NeverRanError": "Defer a function that does its work when it is called, not one that yields.",
        "LayerError": "Look at the middleware or the framework's hook that answered. The call has run, and runs again.",
    },
    "A task's own choice": {
        "RetryLater": "Raise it yourself: the call runs again at the time that you give.",
        "PermanentTaskFailure": "Raise it yourself: the task ends as a dead letter.",
        "SingularTaskFailure": "Raise it yourself: the task is tried again, without an error in the log.",
    },
    "The local server and tests": {
        "ServerError": "Follow the message, which the command prints. ``--traceback`` adds the traceback.",
        "TaskRunError": "Look at ``run``, the attempt that failed, and at the log of the test.",
    },
}
"""What to do about each error, by the part of the library that raises it."""

_MESSAGES: Mapping[str, Exception] = {
    "OptionError": errors.OptionError("_countdown", "soon", "expected a number of seconds or a timedelta."),
    "SettingsError": errors.SettingsError("VARIABLE", "VALUE", "WHAT IS ACCEPTED"),
    "SecretKeyMissingError": errors.SecretKeyMissingError(on_app_engine_standard=False),
    "LocationError": errors.LocationError("VARIABLE", "PROBLEM"),
    "LayerError": errors.LayerError(503),
    "EnqueueError": sdk.EnqueueError("mail/send", "default", "NAME", "REASON"),
    "TaskTooLargeError": sdk.TaskTooLargeError("mail/send", "default", None, 2_000_000, 1_000_000, "the payload"),  # type: ignore[arg-type] # its text is enough
}
_HIDDEN = (object, BaseException, Exception)


def public_errors() -> dict[str, type[BaseException]]:
    """Return the public errors by name: those of the package, of its module ``errors``, and of the test helpers."""
    modules = (deferred_middleware, errors, sdk, testing)
    # The package imports its names when they are first used.
    found = (getattr(module, name) for module in modules for name in dir(module) if not name.startswith("_"))
    return {
        value.__name__: value
        for value in found
        if isinstance(value, type) and issubclass(value, BaseException) and _is_ours(value)
    }


def _is_ours(kind: type[BaseException]) -> bool:
    return kind.__module__.startswith(("deferred_middleware", "google.appengine.ext.deferred"))


def page() -> str:
    """Return the page."""
    kinds = public_errors()
    lines = [_HEAD]
    for title, names in ADVICE.items():
        lines += [title, "=" * len(title), ""]
        for name, advice in names.items():
            lines += _error(kinds[name], advice)
    lines += ["Reasons of an EnqueueError", "=" * 26, "", *_reasons()]
    return "\n".join(lines).rstrip("\n") + "\n"


def _error(kind: type[BaseException], advice: str) -> Iterable[str]:
    yield from (f".. _error-{kind.__name__}:", "", kind.__name__, "-" * len(kind.__name__), "")
    for paragraph in _meaning(kind):
        yield from (*_wrapped(paragraph), "")
    yield from (*_wrapped(f"**What to do:** {advice}"), "")
    if kind.__name__ in _MESSAGES:
        yield from ("**Message**, for example:", "", *_quoted(str(_MESSAGES[kind.__name__])), "")
    others = [f"``{name}``" for name in _other_types(kind)]
    imported = next(
        module.__name__ for module in (deferred_middleware, errors, sdk, testing) if hasattr(module, kind.__name__)
    )
    yield from _wrapped(f"Import it from ``{imported}``." + (f" Also of type {_listed(others)}." if others else ""))
    yield ""


def _meaning(kind: type[BaseException]) -> list[str]:
    text = _TASK_FAILURES.get(kind.__name__) or inspect.getdoc(kind) or ""
    text = re.sub(r":\w+:`~?([\w.]+)`", lambda found: f"``{found[1].rsplit('.', 1)[-1]}``", text)
    return [" ".join(part.split()) for part in text.partition("\n\nArgs:")[0].split("\n\n")]


_TASK_FAILURES: Mapping[str, str] = {
    "PermanentTaskFailure": "A task that can never succeed: it is not tried again.",
    "SingularTaskFailure": "A task that is to be tried again, without an error in the log.",
}


def _other_types(kind: type[BaseException]) -> list[str]:
    """Return the names of the types, besides the parents on this page, that code may catch."""
    kept = [base for base in kind.__mro__[1:] if base not in _HIDDEN]
    nearest = [base for base in kept if not any(base is not other and issubclass(other, base) for other in kept)]
    outside = [
        base
        for base in kept
        if not base.__module__.startswith("deferred_middleware")
        and not any(base is not other and issubclass(other, base) and not _of_package(other) for other in kept)
    ]
    ours = [base for base in nearest if _of_package(base)]
    return [_name(base) for base in (*ours, *outside)]


def _of_package(kind: type) -> bool:
    return kind.__module__.startswith("deferred_middleware")


def _name(kind: type) -> str:
    module = kind.__module__.rsplit(".", 1)[-1].lstrip("_")
    return kind.__name__ if module == "builtins" or _of_package(kind) else f"{module}.{kind.__name__}"


def _reasons() -> Iterable[str]:
    yield from _wrapped(
        "If the SDK or Cloud Tasks refused a task, the error is also of the SDK's type, and has this reason:"
    )
    yield ""
    for kind, reason in sdk._REASONS.items():
        yield from (f".. _error-reason-{kind.__name__}:", "", f"``{_name(kind)}``")
        yield from _wrapped(_as_text(reason[0].upper() + reason[1:]), "    ")
        yield ""


def _as_text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"``\1``", text)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _quoted(text: str) -> list[str]:
    return [".. code-block:: text", "", *_wrapped(text, "    ")]


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


if __name__ == "__main__":
    PAGE.write_text(page())
