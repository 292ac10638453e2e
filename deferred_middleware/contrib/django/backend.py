"""A backend for ``django.tasks`` (Django 6.0): Django's own ``@task`` enqueues through ``defer``.

    TASKS = {"default": {"BACKEND": "deferred_middleware.contrib.django.backend.DeferredBackend"}}

``QUEUES`` lists the names of the queues that tasks may use. ``OPTIONS`` can have options of ``defer`` for all tasks,
without the underscore: ``target``, ``retry_options``, ``deadline`` and ``headers``. The queue retries a task that
fails. ``task_finished`` is sent when a task has succeeded, or has failed in its last attempt. Results are not kept.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import DEFAULT_TASK_QUEUE_NAME, Task, TaskContext, TaskError, TaskResult, TaskResultStatus
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone
from django.utils.crypto import get_random_string
from django.utils.json import normalize_json
from django.utils.module_loading import import_string

from deferred_middleware.calls.call import call_with, wait_for_result
from deferred_middleware.calls.callables import check_kind, label_of
from deferred_middleware.calls.options import Options
from deferred_middleware.config.process import current_deployment
from deferred_middleware.enqueue.api import enqueue
from deferred_middleware.errors import UnpicklableArgumentError
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
        """Enqueue a task. Raises what :func:`deferred_middleware.defer` raises.

        Django's tasks take arguments that JSON can hold. :class:`UnpicklableArgumentError` names any other one.
        """
        self.validate_task(task)
        task_call = TaskCall(task, get_random_string(32), timezone.now())
        options = {f"_{name}": value for name, value in self.options.items()}
        if task.queue_name != DEFAULT_TASK_QUEUE_NAME:
            options["_queue"] = task.queue_name
        if task.run_after is not None:
            # Without USE_TZ it is naive and in local time.
            options["_eta"] = task.run_after.astimezone()
        check_kind(task.func)
        taken, _ = Options.take_from(options, label_of(task_call), None)
        checked = call_with(task_call, tuple(args), kwargs, taken)
        _check_json(task_call, args, kwargs)
        result = task_call.result(list(args), dict(kwargs), self.alias)
        # The arguments are now what JSON holds.
        enqueue(dataclasses.replace(checked, args=tuple(result.args), kwargs=result.kwargs))
        task_enqueued.send(type(self), task_result=result)
        return result


class TaskCall:
    """A Django task as a callable: it has the name and the parameters of the task's function, and runs it.

    It is pickled as a call of :func:`load_task`. Tasks in flight name that function, so it must stay importable here.
    """

    def __init__(self, task: Task[Any, Any], result_id: str, enqueued_at: datetime) -> None:
        self.task = task
        self._result_id = result_id
        self._enqueued_at = enqueued_at
        # The label of an object that is callable. So the URL, the logs and the local server name the function.
        self.__module__ = task.func.__module__
        self.__qualname__ = task.func.__qualname__

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.task.func, follow_wrapped=False)
        # Django gives the context itself.
        parameters = list(signature.parameters.values())[1 if self.task.takes_context else 0 :]
        return signature.replace(parameters=parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run the task."""
        _run(self.result(list(args), kwargs, self.task.backend))

    def result(self, args: list[Any], kwargs: dict[str, Any], alias: str) -> TaskResult[Any, Any]:
        """Return Django's result of the task before it runs."""
        return _make_result(self.task, args, kwargs, self._result_id, self._enqueued_at, alias)

    def __reduce__(self) -> tuple[Any, ...]:
        options = {field.name: getattr(self.task, field.name) for field in dataclasses.fields(self.task)}
        del options["func"]
        return load_task, (self.task.module_path, options, self._result_id, self._enqueued_at)


def load_task(path: str, options: dict[str, Any], result_id: str, enqueued_at: datetime) -> TaskCall:
    """Return the pickled call of the task that has the dotted ``path``. ``options`` are the fields of Django's task.

    Raises ImportError if there is no such task.
    """
    found = import_string(path)
    if not isinstance(found, Task):
        raise ImportError(f"{path} is not a task of Django's, but a {type(found).__name__}")
    return TaskCall(dataclasses.replace(found, **options), result_id, enqueued_at)


def run(task: Task[Any, Any], args: list[Any], kwargs: dict[str, Any], result_id: str, enqueued_at: datetime) -> None:
    """Run a task of Django's that an earlier version has enqueued.

    Tasks in flight may have the name of this function, so it must stay importable here.
    """
    _run(_make_result(task, args, kwargs, result_id, enqueued_at, task.backend))


def _run(result: TaskResult[Any, Any]) -> None:
    task = result.task
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
            returned = task.call(TaskContext(task_result=result), *result.args, **result.kwargs)
        else:
            returned = task.call(*result.args, **result.kwargs)
        wait_for_result(task.func, returned)
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


def _check_json(func: TaskCall, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise :class:`UnpicklableArgumentError` for the smallest part of the arguments that Django doesn't accept."""
    arguments = {f"args[{number}]": value for number, value in enumerate(args)}
    arguments |= {f"kwargs[{name!r}]": value for name, value in kwargs.items()}
    for path, value in arguments.items():
        problem = _json_problem(value)
        if problem is not None:
            path, problem = _smallest(path, value, problem)
            label = str(label_of(func))
            raise UnpicklableArgumentError(
                label,
                path,
                f"{label} can't be deferred: {path}: {problem}. Django's tasks take only what JSON can hold. Pass what "
                "identifies it (a key, an id, a path).",
            )


def _json_problem(value: object) -> str | None:
    try:
        normalize_json(value)
    except RecursionError:
        return f"{type(value).__name__} is nested too deep"
    except (TypeError, ValueError) as error:
        return f"{type(value).__name__} ({error})"
    return None


def _smallest(path: str, value: object, problem: str) -> tuple[str, str]:
    while "nested too deep" not in problem:
        parts: list[tuple[str, object]] = []
        if isinstance(value, Mapping):
            parts += [(f" (key {type(key).__name__})", key) for key in value]
            parts += [(f"[{key!r}]", item) for key, item in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            parts += [(f"[{number}]", item) for number, item in enumerate(value)]
        for step, part in parts:
            found = _json_problem(part)
            if found is not None:
                path, value, problem = path + step, part, found
                break
        else:
            break
    return path, problem


def _is_final(error: Exception) -> bool:
    from deferred_middleware.errors.task_failures import PermanentTaskFailure

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
