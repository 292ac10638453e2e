"""Test code that defers calls, without a server: capture the tasks, assert what was enqueued, and run it in the app.

With pytest, the fixture ``deferred_tasks`` is available as soon as the package is installed::

    def test_a_new_user_gets_a_mail(client, deferred_tasks):
        client.post("/signup/ann")
        deferred_tasks.assert_enqueued(send_welcome, "ann", _queue="mail")

    def test_the_mail_is_sent(client, deferred_tasks):
        deferred_tasks.app = app.wsgi_app
        client.post("/signup/ann")
        deferred_tasks.run_all()
        assert outbox == ["ann"]

With other test runners, use the context manager :func:`capture_tasks`. Import it before the app: the import makes a
secret key, which the app's middleware needs if ``DEFERRED_SECRET_KEYS`` isn't set. A task runs as the queue would run
it: as a request to the WSGI app, through every middleware, with the queue's headers and the payload that was enqueued.

Importing this package does not import the SDK. The first access to one of its names does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deferred_middleware.config.process import make_key_for_tests

if TYPE_CHECKING:
    from deferred_middleware.testing.capture import DeferredTasks, capture_tasks
    from deferred_middleware.testing.delivery import TaskRun, TaskRunError
    from deferred_middleware.testing.records import Clock, EnqueuedTask

__all__ = ["Clock", "DeferredTasks", "EnqueuedTask", "TaskRun", "TaskRunError", "capture_tasks"]

_MODULES = {
    "Clock": "records",
    "DeferredTasks": "capture",
    "EnqueuedTask": "records",
    "TaskRun": "delivery",
    "TaskRunError": "delivery",
    "capture_tasks": "capture",
}

make_key_for_tests()


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
