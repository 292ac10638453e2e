"""Dramatiq as benchmarks/local_queue.py runs it, on Redis."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from local_queue_tasks import ping, work

broker = RedisBroker(url=os.environ["LOCAL_QUEUE_REDIS"])
dramatiq.set_broker(broker)
work_actor = dramatiq.actor(work)
ping_actor = dramatiq.actor(ping)
