"""Test code that defers calls, with no server: capture what is enqueued, look at it, run it through the app.

With pytest, the fixture ``deferred_tasks`` is there once the package is installed::

    def test_a_new_user_gets_a_mail(client, deferred_tasks):
        client.post("/signup/ann")
        deferred_tasks.assert_enqueued(send_welcome, "ann", _queue="mail")

    def test_the_mail_is_sent(client, deferred_tasks):
        deferred_tasks.app = app.wsgi_app
        client.post("/signup/ann")
        deferred_tasks.run_all()
        assert outbox == ["ann"]

Elsewhere :func:`capture_tasks` is the same as a context manager; import it before the app, whose middleware needs a
secret key where ``DEFERRED_SECRET_KEYS`` has none. Tasks are run as the queue would run them: as requests
to the WSGI app with the queue's headers, through every middleware, and with the payload that was enqueued.
"""

from __future__ import annotations

from deferred_middleware.config.process import make_key_for_tests
from deferred_middleware.testing.capture import DeferredTasks, capture_tasks
from deferred_middleware.testing.delivering import TaskRun, TaskRunError
from deferred_middleware.testing.records import Clock, EnqueuedTask

__all__ = ["Clock", "DeferredTasks", "EnqueuedTask", "TaskRun", "TaskRunError", "capture_tasks"]

make_key_for_tests()
