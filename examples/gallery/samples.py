"""Tasks to look at on the page of the local server: some that wait, one that fails and is retried, a dead letter.

``demo.py`` enqueues them with ``deferred-middleware call``, as you can from a shell.
"""

from __future__ import annotations

from google.appengine.ext.deferred import PermanentTaskFailure


def send_digest(weekday: str) -> None:
    """Send nothing; the demonstration enqueues it for later."""


def order_print(title: str, *, copies: int) -> None:
    """Fail, as if the printer's server didn't answer. The queue tries it again and again, with growing pauses."""
    raise ConnectionError(f"the print shop doesn't answer ({copies} copies of {title})")


def import_album(url: str) -> None:
    """Fail for good. The task becomes a dead letter, which a person can retry."""
    raise PermanentTaskFailure(f"{url} is no album")
