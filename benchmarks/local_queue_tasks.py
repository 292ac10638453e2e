"""The tasks that benchmarks/local_queue.py runs on all contenders.

They report to the benchmark's socket, at ``$LOCAL_QUEUE_REPORT``.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time

_lock = threading.Lock()
_begun: list[float] = []


def work(number: int, total: int) -> None:
    """Do nothing. The last of ``total`` tasks reports how many seconds after the first it started."""
    with _lock:
        _begun.append(time.monotonic())
        if len(_begun) < total:
            return
        seconds = _begun[-1] - _begun[0]
        _begun.clear()
    _report(seconds)


def ping(sent: float, text: str) -> None:
    """Report the seconds since ``sent``, by the clock that all processes of a machine share."""
    _report(time.monotonic() - sent)


def _report(value: float) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(json.dumps(value).encode(), os.environ["LOCAL_QUEUE_REPORT"])
