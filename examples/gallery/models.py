"""The gallery's entities, with the SDK's ndb.

A photograph and everything made from it are one entity group, whose root is the :class:`Photo`. All keys are
deterministic, so that a task that is delivered twice writes the same entities twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from google.appengine.ext import ndb

import images

THUMBNAIL_SIZES_PX: Final = (160, 320, 640, 1280)
"""The longest sides of the thumbnails."""

PALETTE: Final = "palette"
PIECES: Final = (*(str(size_px) for size_px in THUMBNAIL_SIZES_PX), PALETTE)
"""The pieces made from each photograph, by one task each. They are the IDs of its :class:`Run` entities."""

CHUNK_BYTES: Final = 900 * 1024
"""The size of a chunk. An entity holds just under 1 MiB: https://cloud.google.com/datastore/docs/concepts/limits"""

DONE, RETRYING, FAILED = "done", "retrying", "failed"


class _Entity(ndb.Model):  # type: ignore[misc]  # the SDK has no types
    """The common base of the gallery's entities."""


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
    """A part of a photograph's bytes. The ID is its position, from 1."""

    _use_cache = False
    _use_memcache = False  # read once per task, so caching it would only evict data that is read often
    data = ndb.BlobProperty()


class Thumbnail(_Entity):
    """A thumbnail. The ID is its size, as in :data:`PIECES`."""

    _use_cache = False
    data = ndb.BlobProperty()


class Run(_Entity):
    """The latest attempt of a piece's task, and its result. The ID is the piece."""

    _use_memcache = False  # the page reads it while it changes, and must see its latest state
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
    """Return the key of a piece's :class:`Run`."""
    return ndb.Key(Photo, photo_id, Run, piece)


def thumbnail_key(photo_id: str, size_px: int) -> Any:
    """Return the key of a thumbnail."""
    return ndb.Key(Photo, photo_id, Thumbnail, str(size_px))


def keep_photo(filename: str, data: bytes, facts: images.Facts, enqueue: Callable[[str], None]) -> Photo:
    """Store an uploaded photograph, and return it.

    ``enqueue`` is called with its ID inside the transaction that stores the photograph. So the calls that it defers
    transactionally are enqueued if and only if the photograph is stored, even if the process crashes. The chunks are
    written first, so that a visible photograph is complete. They are not in the transaction, because a commit takes at
    most 10 MiB.
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
        delete_photo(photo_id)  # deletes the chunks, which are unreachable now
        raise
    return photo


def read_original(photo_id: str) -> bytes | None:
    """Return a photograph's bytes as they were uploaded, or None if it has been deleted."""
    key = photo_key(photo_id)
    photo = key.get()
    if photo is None:
        return None
    chunks = ndb.get_multi([ndb.Key(Chunk, number, parent=key) for number in range(1, photo.chunk_count + 1)])
    if any(chunk is None for chunk in chunks):
        return None  # it is being deleted
    return b"".join(chunk.data for chunk in chunks)


def keep_run(run: Run, *made: _Entity) -> bool:
    """Store the results of a task and the record of its attempt, unless the photograph has been deleted.

    A failed attempt never replaces a successful one, because either of two deliveries of a task may end last. Return
    whether anything was stored.
    """

    def keep() -> bool:
        if run.key.parent().get() is None:
            return False
        known = run.key.get()
        if known is not None and known.state == DONE and run.state != DONE:
            return False
        ndb.put_multi([run, *made])
        return True

    # The tasks of a photograph end at about the same time. So conflicts are frequent, and the default of 3 is too low.
    return bool(ndb.transaction(keep, retries=8))


def delete_photo(photo_id: str) -> None:
    """Delete a photograph and everything made from it. If there is none, do nothing."""
    key = photo_key(photo_id)
    key.delete()  # first, so that a running task can't add to it: see keep_run
    ndb.delete_multi(ndb.Query(ancestor=key).fetch(keys_only=True))


def newest_photos(limit: int, offset: int = 0) -> list[Photo]:
    """Return uploads, newest first, without the first ``offset`` of them."""
    return list(Photo.query().order(-Photo.uploaded).fetch(limit, offset=offset))


def count_photos() -> int:
    """Return the number of photographs."""
    return int(Photo.query().count())


def runs_of(photos: Sequence[Photo]) -> list[dict[str, Run]]:
    """Return the :class:`Run` entities of each photograph, in one round trip for all of them."""
    keys = [run_key(photo.key.id(), piece) for photo in photos for piece in PIECES]
    runs = ndb.get_multi(keys)
    return [
        {run.key.id(): run for run in runs[position : position + len(PIECES)] if run is not None}
        for position in range(0, len(runs), len(PIECES))
    ]


def palette_json(swatches: Sequence[images.Swatch]) -> list[dict[str, object]]:
    """Return a palette in its stored and displayed form."""
    return [{"colour": swatch.colour, "share": round(swatch.share, 4)} for swatch in swatches]
