"""The deferred functions: the processing of a photograph after the upload has been answered.

They are plain functions with small arguments. Tasks are delivered at least once, so each function may run more than
once. Each checks whether its piece exists already, and writes under keys that don't depend on the run.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from deferred_middleware import PermanentTaskFailure, current_task, defer

import images
import models
from requestlog import current_request_id

_log = logging.getLogger("gallery.tasks")

Work = Callable[[bytes, models.Run], "list[models.Thumbnail]"]
"""Takes the original's bytes, adds its findings to the run, and returns the entities that it made."""


def defer_everything(photo_id: str) -> None:
    """Enqueue one task for each piece of a photograph, if the transaction commits.

    A transaction takes five tasks: https://cloud.google.com/appengine/docs/standard/services/datastore/transactions
    """
    for size_px in models.THUMBNAIL_SIZES_PX:
        defer(make_thumbnail, photo_id, size_px, _transactional=True)
    defer(extract_palette, photo_id, _transactional=True)


def make_thumbnail(photo_id: str, size_px: int) -> None:
    """Make the thumbnail whose longest side is ``size_px`` pixels."""

    def work(original: bytes, run: models.Run) -> list[models.Thumbnail]:
        scaled = images.scale(original, size_px)
        run.width_px, run.height_px = scaled.width_px, scaled.height_px
        return [models.Thumbnail(key=models.thumbnail_key(photo_id, size_px), data=scaled.data)]

    _make(photo_id, str(size_px), work)


def extract_palette(photo_id: str) -> None:
    """Find the photograph's main colours."""

    def work(original: bytes, run: models.Run) -> list[models.Thumbnail]:
        run.palette = models.palette_json(images.palette(original))
        return []

    _make(photo_id, models.PALETTE, work)


def _make(photo_id: str, piece: str, work: Work) -> None:
    """Make one piece and store it, with a record of the attempt that the page can show.

    An error is also recorded for the page. It is raised to the queue, which retries the task.
    """
    known = models.run_key(photo_id, piece).get()
    if known is not None and known.state == models.DONE:
        _log.info("the %s of %s is made already", piece, photo_id)
        return
    started_seconds = time.perf_counter()
    run = _new_run(photo_id, piece)
    try:
        original = models.read_original(photo_id)
        if original is None:
            _log.info("%s has been deleted: no %s to make", photo_id, piece)
            return
        made = work(original, run)
        run.state = models.DONE
        run.milliseconds = (time.perf_counter() - started_seconds) * 1000
        models.keep_run(run, *made)
    except images.BadImageError as error:
        # The next attempt would get the same bytes, so it would fail too.
        models.keep_run(_failed(run, models.FAILED, error, started_seconds))
        raise PermanentTaskFailure(f"no {piece} of {photo_id}: {error}") from error
    except Exception as error:
        models.keep_run(_failed(run, models.RETRYING, error, started_seconds))
        raise


def _new_run(photo_id: str, piece: str) -> models.Run:
    """Return the record of this attempt at its start."""
    run = models.Run(
        key=models.run_key(photo_id, piece),
        service=os.environ.get("GAE_SERVICE", "default"),
        request_id=current_request_id(),
    )
    task = current_task()
    if task is not None:  # None if a test calls the function directly
        run.task, run.queue, run.function = task.name, task.queue, task.label
        run.attempts = task.attempt
    return run


def _failed(run: models.Run, state: str, error: Exception, started_seconds: float) -> models.Run:
    """Change the record of an attempt to a failed one."""
    run.state = state
    message = str(error) if isinstance(error, images.BadImageError) else f"{type(error).__name__}: {error}"
    run.error = message[:500]
    run.milliseconds = (time.perf_counter() - started_seconds) * 1000
    return run
