"""Keeps damaged files beside the ones that take their place, so that nothing is thrown away that a person may need."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path


def keep_aside(path: Path) -> Path:
    """Copy a damaged file to one with the time in its name, and write it to disk; return that.

    Raises :class:`OSError`, without leaving half of a copy.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    kept = path.with_name(f"{path.name}.damaged-{now:%Y%m%dT%H%M%S.%fZ}")
    try:
        with (
            open(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target,
            path.open("rb") as source,
        ):
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
    except OSError:
        kept.unlink(missing_ok=True)
        raise
    return kept
