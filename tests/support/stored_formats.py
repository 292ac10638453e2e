"""What the library leaves in logs and in the datastore: one version writes it, another reads it.

``python -m tests.support.stored_formats FILE`` writes the log line of a dead letter, and an entity of the outbox of
transactional tasks on Cloud Tasks. :mod:`tests.support.stored_data_dir` has what the local server keeps,
:mod:`tests.support.stored_tasks` has requests of tasks.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
from pathlib import Path
from typing import Any

from google.appengine.api import datastore
from google.appengine.ext import ndb, testbed

from deferred_middleware import DeferredMiddleware, PermanentTaskFailure, Settings, defer
from deferred_middleware.config.process import install_settings
from deferred_middleware.engines import outbox
from deferred_middleware.execution.dead_letters import MARK
from deferred_middleware.testing import capture_tasks
from tests.support import sample
from tests.support.watching import other_pages

SETTINGS = Settings.from_environ({"DEFERRED_SECRET_KEYS": "stored formats: a key that is long enough"})
PARENT = "projects/shop/locations/europe-west1/queues/default"
MENDED = "mended"


def fails_unless_mended(value: object) -> None:
    """Note the value; fail for good until :data:`MENDED` is noted."""
    sample.ran.append(value)
    if MENDED not in sample.ran:
        raise PermanentTaskFailure("broken")


def dead_letter() -> str:
    """Return the log line of a dead letter."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("deferred_middleware.dead_letters")
    logger.addHandler(handler)
    try:
        with capture_tasks(DeferredMiddleware(other_pages)) as tasks:
            defer(fails_unless_mended, "once more", _queue="mail", _headers={"X-Tenant": "a"}, _max_attempts=9)
            tasks.run(raise_errors=False)
    finally:
        logger.removeHandler(handler)
    (line,) = (line for line in lines if MARK in line)
    return line


def outbox_entity() -> str:
    """Return an entity of the outbox that a transaction has committed and nobody has sent, in the SDK's encoding."""

    def unreachable(parent: str, serialized: bytes) -> None:
        raise OSError("unreachable")

    ndb.transaction(
        lambda: outbox.add(parent=PARENT, make_task=lambda name: b"a task named " + name.encode(), send=unreachable)
    )
    (entity,) = datastore.Query(outbox.KIND, namespace="").Run()
    return base64.b64encode(entity.ToPb().SerializeToString()).decode()


def main(file: str) -> None:
    """Write both to ``file``."""
    install_settings(SETTINGS)
    content: dict[str, Any] = {"dead letter": dead_letter()}
    bed = testbed.Testbed()
    bed.activate()
    bed.init_datastore_v3_stub()
    bed.init_memcache_stub()
    content["outbox"] = outbox_entity()
    bed.deactivate()
    Path(file).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    from tests.support import stored_formats

    stored_formats.main(*sys.argv[1:])
