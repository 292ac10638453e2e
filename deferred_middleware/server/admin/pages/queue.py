"""One queue: its configuration, and what can be done to it."""

from __future__ import annotations

from http import HTTPStatus

from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.reading.why import rate_text
from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Redirected, Shown
from deferred_middleware.server.admin.web.routes import Route
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.words import plural


def show_queue(tools: PageTools, _request: PageRequest, queue: str) -> Answer:
    """Show a queue."""
    shown = tools.operations.show_queue(queue)["queue"]
    values = {"queue": shown, "rate": rate_text(tools.operations.config_of(queue))}
    return Shown(template="queue.html", values={**values, "standing": tools.operations.standing.queue(queue)})


def pause_queue(tools: PageTools, request: PageRequest, queue: str) -> Answer:
    """Pause a queue."""
    answer = tools.operations.pause(request.actor, queue)
    notice = f"Queue {queue} is paused." if answer["changed"] else f"Queue {queue} was paused already."
    return Redirected(to=request.back("/"), notice=notice)


def resume_queue(tools: PageTools, request: PageRequest, queue: str) -> Answer:
    """Resume a queue."""
    answer = tools.operations.resume(request.actor, queue)
    notice = f"Queue {queue} runs again." if answer["changed"] else f"Queue {queue} was not paused."
    return Redirected(to=request.back("/"), notice=notice)


def ask_purge(tools: PageTools, _request: PageRequest, queue: str) -> Answer:
    """Ask whether to delete all unfinished tasks of a queue, and say how many these are."""
    number = tools.operations.unfinished(queue)
    return Shown(template="purge.html", values={"queue": queue, "number": number, "problem": ""})


def purge_queue(tools: PageTools, request: PageRequest, queue: str) -> Answer:
    """Delete all unfinished tasks of a queue, if the person has typed its name."""
    number = tools.operations.unfinished(queue)
    if request.field("typed").strip() != queue:
        return Shown(
            template="purge.html",
            status=HTTPStatus.BAD_REQUEST,
            values={"queue": queue, "number": number, "problem": f"Nothing was deleted: type {queue} to confirm."},
        )
    seen = request.field("number")
    if seen.isascii() and seen.isdecimal() and len(seen) < 19 and number > int(seen):
        raise OperationError(
            HTTPStatus.CONFLICT,
            "changed",
            f"Nothing was deleted: queue {queue} has {plural(number, 'unfinished task')} now, and had {int(seen):,} "
            "when you were asked. Look at it again.",
        )
    deleted = tools.operations.purge(request.actor, queue)["deleted"]
    notice = f"{plural(deleted, 'task')} of queue {queue} deleted. For ten minutes you can undo that."
    return Redirected(to="/", notice=notice)


def undo_purge(tools: PageTools, request: PageRequest, queue: str) -> Answer:
    """Bring the tasks of the last purge of a queue back."""
    answer = tools.operations.undo_purge(request.actor, queue)
    refused = answer["refused"]
    more = f" {plural(refused, 'task')} can't come back: their names are taken by now." if refused else ""
    return Redirected(
        to=request.back("/"), notice=f"{plural(answer['restored'], 'task')} of queue {queue} restored.{more}"
    )


def retry_failed(tools: PageTools, request: PageRequest, queue: str) -> Answer:
    """Run all dead letters of a queue again."""
    number = tools.operations.retry_failed(request.actor, queue)["retried"]
    return Redirected(to=request.back("/"), notice=f"{plural(number, 'failed task')} of queue {queue} tried again.")


def run_scheduled(tools: PageTools, request: PageRequest, queue: str) -> Answer:
    """Make the scheduled tasks of a queue due."""
    number = tools.operations.run_scheduled(request.actor, queue)["made_due"]
    return Redirected(to=request.back("/"), notice=f"{plural(number, 'scheduled task')} of queue {queue} made due.")


ROUTES = (
    Route("GET", "/queues/{queue}", show_queue),
    Route("POST", "/queues/{queue}/pause", pause_queue),
    Route("POST", "/queues/{queue}/resume", resume_queue),
    Route("GET", "/queues/{queue}/purge", ask_purge),
    Route("POST", "/queues/{queue}/purge", purge_queue),
    Route("POST", "/queues/{queue}/undo-purge", undo_purge),
    Route("POST", "/queues/{queue}/retry", retry_failed),
    Route("POST", "/queues/{queue}/run-scheduled", run_scheduled),
)
