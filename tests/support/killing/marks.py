"""The task of the app that kills itself: it tells the test its mark."""

from __future__ import annotations

import json
import os
import socket


def ran(mark: str) -> None:
    """Send the mark to the test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_the_test:
        to_the_test.sendto(json.dumps({"ran": mark}).encode(), os.environ["RECORDER"])
