import contextvars
import functools
import logging
import threading
from types import SimpleNamespace
from typing import Any

from typing_extensions import Unpack

from deferred_middleware import task
from deferred_middleware.calls.option_types import DeferOptions

user_id, work, order = 7, print, "tea"
keys = ["a", "b", "c"]
orders = [SimpleNamespace(key=key) for key in keys]
log = logging.getLogger("page")


@task
def send_welcome(user_id: int, greeting: str) -> None:
    pass


def send_mail(user_id: int) -> None:
    pass


def resize(key: str) -> None:
    pass


def ship(key: str) -> None:
    pass


def check(tasks: Any) -> None:
    labels = [str(task.label) for task in tasks.enqueued]
    assert labels == ["page/send_welcome"] * 4 + ["page/resize"] * 6 + ["page/ship"] * 3
    assert {task.queue for task in tasks.enqueued[7:10]} == {"images"}
