"""What the gallery keeps, with the SDK's ndb.

A photograph and everything made from it are one entity group, whose root is the :class:`Photo`. All keys are
deterministic, so that a task which is delivered twice writes the same entities twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from google.appengine.ext import ndb

import images

THUMBNAIL_SIZES_PX: Final = (160, 320, 640, 1280)
"""Longest sides of the thumbnails."""

PALETTE: Final = "palette"
PIECES: Final = (*(str(size_px) for size_px in THUMBNAIL_SIZES_PX), PALETTE)
"""What is made of each photograph, one task each; the ids of its :class:`Run` entities."""

CHUNK_BYTES: Final = 900 * 1024
"""An entity holds just under 1 MiB: https://cloud.google.com/datastore/docs/concepts/limits"""

DONE, RETRYING, FAILED = "done", "retrying", "failed"


class _Entity(ndb.Model):  # type: ignore[misc]  # the SDK has no types
    """What the gallery's entities have in common."""


class Photo(_Entity):
    """A photograph. Its bytes are in its :class:`Chunk` children."""

    filename = ndb.StringProperty(indexed=False)
    media_type = ndb.StringProperty(indexed=False)
    width_px = ndb.IntegerProperty(indexed=False)
    height_px = ndb.IntegerProperty(indexed=False)
    size_bytes = ndb.IntegerProperty(indexed=False)
    chunk_count = ndb.IntegerProperty(indexed=False)
    uploaded = ndb.DateTimeProperty(auto_now_add=True)


class Chunk(_Entity):
    """Some consecutive bytes of a photograph; the id is the position, from 1."""

    _use_cache = False
    _use_memcache = False  # read once per task: it would only push out what is read often
    data = ndb.BlobProperty()


class Thumbnail(_Entity):
    """A thumbnail; the id is its size, as in :data:`PIECES`."""

    _use_cache = False
    data = ndb.BlobProperty()


class Run(_Entity):
    """How a piece was made or why it was not: the latest attempt of its task. The id is the piece."""

    _use_memcache = False  # the page asks for it while it changes, and must see the last state of it
    state = ndb.StringProperty(indexed=False, choices=(DONE, RETRYING, FAILED))
    error = ndb.StringProperty(indexed=False)
    width_px = ndb.IntegerProperty(indexed=False)
    height_px = ndb.IntegerProperty(indexed=False)
    palette = ndb.JsonProperty(indexed=False)
    task = ndb.StringProperty(indexed=False)
    function = ndb.StringProperty(indexed=False)
    queue = ndb.StringProperty(indexed=False)
    service = ndb.StringProperty(indexed=False)
    attempts = ndb.IntegerProperty(indexed=False)
    milliseconds = ndb.FloatProperty(indexed=False)
    request_id = ndb.StringProperty(indexed=False)


def photo_key(photo_id: str) -> Any:
    """Return the key of a photograph."""
    return ndb.Key(Photo, photo_id)


def run_key(photo_id: str, piece: str) -> Any:
    """Return the key of what is known about the making of a piece."""
    return ndb.Key(Photo, photo_id, Run, piece)


def thumbnail_key(photo_id: str, size_px: int) -> Any:
    """Return the key of a thumbnail."""
    return ndb.Key(Photo, photo_id, Thumbnail, str(size_px))


def keep_photo(filename: str, data: bytes, facts: images.Facts, enqueue: Callable[[str], None]) -> Photo:
    """Keep an uploaded photograph and return it.

    ``enqueue`` gets its id inside the transaction that keeps it: what it defers transactionally is enqueued exactly if
    the photograph is kept, wherever a crash may come. The chunks go first: a photograph that can be seen is whole. They
    are not in the transaction, because one commit takes at most 10 MiB.
    """
    photo_id = uuid.uuid4().hex
    pieces = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    key = photo_key(photo_id)
    ndb.put_multi(
        [Chunk(key=ndb.Key(Chunk, number, parent=key), data=piece) for number, piece in enumerate(pieces, start=1)]
    )
    photo = Photo(
        key=key,
        filename=filename,
        media_type=facts.media_type,
        width_px=facts.width_px,
        height_px=facts.height_px,
        size_bytes=len(data),
        chunk_count=len(pieces),
    )

    def keep() -> None:
        photo.put()
        enqueue(photo_id)

    try:
        ndb.transaction(keep)
    except BaseException:
        delete_photo(photo_id)  # the chunks, which nobody would ever read
        raise
    return photo


def read_original(photo_id: str) -> bytes | None:
    """Return a photograph's bytes as they were uploaded, or None when it has been deleted."""
    key = photo_key(photo_id)
    photo = key.get()
    if photo is None:
        return None
    chunks = ndb.get_multi([ndb.Key(Chunk, number, parent=key) for number in range(1, photo.chunk_count + 1)])
    if any(chunk is None for chunk in chunks):
        return None  # being deleted at this moment
    return b"".join(chunk.data for chunk in chunks)


def keep_run(run: Run, *made: _Entity) -> bool:
    """Keep what a task made, with the account of its making, unless the photograph is gone.

    An attempt that failed never replaces one that succeeded: of two deliveries of a task, either may end last.
    Return whether anything was kept.
    """

    def keep() -> bool:
        if run.key.parent().get() is None:
            return False
        known = run.key.get()
        if known is not None and known.state == DONE and run.state != DONE:
            return False
        ndb.put_multi([run, *made])
        return True

    # The tasks of one photograph end at the same time, and so collide here more often than the default of 3 allows.
    return bool(ndb.transaction(keep, retries=8))


def delete_photo(photo_id: str) -> None:
    """Delete a photograph and everything made from it. Does nothing when there is none."""
    key = photo_key(photo_id)
    key.delete()  # first, so that a task still running can't add to it: see keep_run
    ndb.delete_multi(ndb.Query(ancestor=key).fetch(keys_only=True))


def newest_photos(limit: int) -> list[Photo]:
    """Return the photographs that were uploaded last, newest first."""
    return list(Photo.query().order(-Photo.uploaded).fetch(limit))


def runs_of(photos: Sequence[Photo]) -> list[dict[str, Run]]:
    """Return for each photograph what is known of its pieces, in one round trip for all of them."""
    keys = [run_key(photo.key.id(), piece) for photo in photos for piece in PIECES]
    runs = ndb.get_multi(keys)
    return [
        {run.key.id(): run for run in runs[position : position + len(PIECES)] if run is not None}
        for position in range(0, len(runs), len(PIECES))
    ]


def palette_json(swatches: Sequence[images.Swatch]) -> list[dict[str, object]]:
    """Return a palette in the form in which it is kept and shown."""
    return [{"colour": swatch.colour, "share": round(swatch.share, 4)} for swatch in swatches]
