"""Huey as benchmarks/local_queue.py runs it, on a SQLite file that is synced at each commit."""

from __future__ import annotations

import os

from huey import SqliteHuey
from local_queue_tasks import ping, work

huey = SqliteHuey(filename=os.environ["LOCAL_QUEUE_HUEY"], fsync=True, results=False)
work_task = huey.task()(work)
ping_task = huey.task()(ping)
