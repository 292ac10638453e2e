"""Tests of trust.py."""

from __future__ import annotations

import itertools

import pytest
from delivering import task_environ

from deferred_middleware.trust import refusal


def test_the_task_queues_request_is_believed() -> None:
    """A request with the platform's headers is a task."""
    assert refusal(task_environ(b"")) is None


def test_the_user_ip_may_be_absent() -> None:
    """The user's IP is looked at when it is there; not every engine sends it."""
    assert refusal(task_environ(b"", HTTP_X_APPENGINE_USER_IP=None)) is None


@pytest.mark.parametrize(
    ("name", "queue", "ip"),
    [
        combination
        for combination in itertools.product(
            ("task1", "", None), ("default", "", None), ("0.1.0.2", "1.2.3.4", "", None)
        )
        if combination not in (("task1", "default", "0.1.0.2"), ("task1", "default", None))
    ],
)
def test_anything_else_is_refused(name: str | None, queue: str | None, ip: str | None) -> None:
    """An absent or empty name or queue, or another user's IP, is refused."""
    environ = task_environ(
        b"", HTTP_X_APPENGINE_TASKNAME=name, HTTP_X_APPENGINE_QUEUENAME=queue, HTTP_X_APPENGINE_USER_IP=ip
    )

    assert refusal(environ) is not None


@pytest.mark.parametrize("software", ["Development/2.0", "gunicorn/23", None])
def test_address_and_software_are_no_evidence(software: str | None) -> None:
    """REMOTE_ADDR and SERVER_SOFTWARE neither make a request a task nor stop it from being one."""
    forged = task_environ(b"", HTTP_X_APPENGINE_TASKNAME=None, REMOTE_ADDR="0.1.0.2", SERVER_SOFTWARE=software)
    genuine = task_environ(b"", REMOTE_ADDR="10.0.0.1", SERVER_SOFTWARE=software)

    assert refusal(forged) is not None
    assert refusal(genuine) is None
