"""A backend for ``django.tasks`` (Django 6.0): Django's own ``@task`` enqueues through ``defer``.

    TASKS = {"default": {"BACKEND": "deferred_middleware.contrib.django.backend.DeferredBackend"}}

``QUEUES`` lists the names of the queues that tasks may use. ``OPTIONS`` can have options of ``defer`` for all tasks,
without the underscore: ``target``, ``retry_options``, ``deadline`` and ``headers``. The queue retries a task that
fails. ``task_finished`` is sent when a task has succeeded, or has failed in its last attempt. Results are not kept.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import DEFAULT_TASK_QUEUE_NAME, Task, TaskContext, TaskError, TaskResult, TaskResultStatus
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone
from django.utils.crypto import get_random_string

from deferred_middleware.config.process import current_deployment
from deferred_middleware.enqueue.api import defer
from deferred_middleware.errors.text import formatted
from deferred_middleware.execution.context import current_task

_OPTIONS = ("target", "retry_options", "deadline", "headers")


class DeferredBackend(BaseTaskBackend):
    """Enqueues Django's tasks. The queue is the task's ``queue_name``; Django's default name stands for our default."""

    supports_defer = True
    supports_async_task = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        unknown = sorted(set(self.options) - set(_OPTIONS))
        if unknown:
            raise ImproperlyConfigured(
                f"TASKS[{alias!r}]: there is no option {unknown[0]!r}; OPTIONS can have {', '.join(_OPTIONS)}."
            )

    def enqueue(self, task: Task[Any, Any], args: Any, kwargs: Any) -> TaskResult[Any, Any]:
        """Enqueue a task. Raises what :func:`deferred_middleware.defer` raises."""
        self.validate_task(task)
        now = timezone.now()
        result = _make_result(task, list(args), dict(kwargs), get_random_string(32), now, self.alias)
        options = {f"_{name}": value for name, value in self.options.items()}
        if task.queue_name != DEFAULT_TASK_QUEUE_NAME:
            options["_queue"] = task.queue_name
        if task.run_after is not None:
            # Without USE_TZ it is naive and in local time.
            options["_eta"] = task.run_after.astimezone()
        defer(run, task, result.args, result.kwargs, result.id, now, **options)
        task_enqueued.send(type(self), task_result=result)
        return result


def run(task: Task[Any, Any], args: list[Any], kwargs: dict[str, Any], result_id: str, enqueued_at: datetime) -> None:
    """Run a task of Django's.

    Each task is deferred as a call of this function. Tasks in flight have its name, so it must stay importable here.
    """
    result = _make_result(task, args, kwargs, result_id, enqueued_at, task.backend)
    now = timezone.now()
    _update_result(result, status=TaskResultStatus.RUNNING, started_at=now, last_attempted_at=now)
    context = current_task()
    attempt = 1 if context is None else context.attempt
    # TaskResult.attempts is the number of worker IDs.
    result.worker_ids.extend([current_deployment().service or "default"] * attempt)
    sender = type(task.get_backend())
    task_started.send(sender, task_result=result)
    try:
        if task.takes_context:
            task.call(TaskContext(task_result=result), *result.args, **result.kwargs)
        else:
            task.call(*result.args, **result.kwargs)
    except Exception as error:
        if _is_final(error):
            kind = type(error)
            path = f"{kind.__module__}.{kind.__qualname__}"
            text = formatted(error)
            result.errors.append(TaskError(exception_class_path=path, traceback=text))
            _update_result(result, status=TaskResultStatus.FAILED, finished_at=timezone.now())
            task_finished.send(sender, task_result=result)
        raise
    _update_result(result, status=TaskResultStatus.SUCCESSFUL, finished_at=timezone.now())
    task_finished.send(sender, task_result=result)


def _is_final(error: Exception) -> bool:
    from google.appengine.ext.deferred import PermanentTaskFailure

    context = current_task()
    return isinstance(error, PermanentTaskFailure) or bool(context is not None and context.is_last_attempt)


def _make_result(
    task: Task[Any, Any], args: list[Any], kwargs: dict[str, Any], result_id: str, enqueued_at: datetime, alias: str
) -> TaskResult[Any, Any]:
    return TaskResult(
        task=task,
        id=result_id,
        status=TaskResultStatus.READY,  # type: ignore[arg-type] # the stubs declare its members as "..."
        enqueued_at=enqueued_at,
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=[],
        worker_ids=[],
    )


def _update_result(result: TaskResult[Any, Any], **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(result, name, value)  # a TaskResult is frozen; Django's own backends do this too
