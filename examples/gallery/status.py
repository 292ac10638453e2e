"""The data about each photograph that the page and the JSON API show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import url_for

import models

QUEUED, WORKING, COMPLETE = "queued", "working", "complete"


def describe(photos: Sequence[models.Photo]) -> list[dict[str, Any]]:
    """Return a JSON value for each photograph, with the state of each of its pieces."""
    return [_photo_json(photo, runs) for photo, runs in zip(photos, models.runs_of(photos), strict=True)]


def _photo_json(photo: models.Photo, runs: dict[str, models.Run]) -> dict[str, Any]:
    photo_id = photo.key.id()
    pieces = [_piece_json(photo_id, piece, runs.get(piece)) for piece in models.PIECES]
    palette = runs.get(models.PALETTE)
    return {
        "id": photo_id,
        "filename": photo.filename,
        "width": photo.width_px,
        "height": photo.height_px,
        "bytes": photo.size_bytes,
        "uploaded": photo.uploaded.isoformat(timespec="seconds") + "Z",
        "original": url_for("original", photo_id=photo_id),
        "delete": url_for("delete", photo_id=photo_id),
        "state": _state([piece["state"] for piece in pieces]),
        "pieces": pieces,
        "palette": palette.palette if palette is not None else None,
    }


def _piece_json(photo_id: str, piece: str, run: models.Run | None) -> dict[str, Any]:
    if run is None:
        return {"name": piece, "state": QUEUED}
    described = {
        "name": piece,
        "state": run.state,
        "error": run.error,
        "task": run.task,
        "function": run.function,
        "service": run.service,
        "queue": run.queue,
        "attempts": run.attempts,
        "milliseconds": round(run.milliseconds or 0, 1),
        "request_id": run.request_id,
    }
    if run.state == models.DONE and piece != models.PALETTE:
        described["width"], described["height"] = run.width_px, run.height_px
        described["url"] = url_for("thumbnail", photo_id=photo_id, size_px=int(piece))
    return described


def _state(states: Sequence[str]) -> str:
    """Summarize the states of the pieces. A permanent failure comes first, because it matters most to people."""
    if models.FAILED in states:
        return models.FAILED
    if all(state == models.DONE for state in states):
        return COMPLETE
    if models.RETRYING in states:
        return models.RETRYING
    return QUEUED if all(state == QUEUED for state in states) else WORKING
