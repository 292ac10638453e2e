"""Each answer that a queue can give, with the server fault that causes it, for tests of failures."""

from __future__ import annotations

import importlib

import pytest

from deferred_middleware.engines import answers
from deferred_middleware.engines.answers import Answer
from tests.support.faults import ApplicationError, Closed, Fault, HttpStatus, Results, RpcError, Silent, Unreadable

ANSWERS: list[tuple[str, Answer, Fault, bool]] = []
"""The name, its meaning for the library, the server's fault, and whether the add takes effect."""
for _code, _answer in answers.BY_CODE.items():
    ANSWERS.append((f"result {_answer.what}", _answer, Results(_code), False))
    ANSWERS.append((f"error {_answer.what}", _answer, ApplicationError(_code), False))
for _code, _answer in answers.BY_RPC_ERROR.items():
    ANSWERS.append((f"rpc {_answer.what}", _answer, RpcError(_code), False))
    if _answer.maybe_enqueued:
        ANSWERS.append((f"rpc {_answer.what} after it", _answer, RpcError(_code, added=True), True))
for _answer, _kind in (
    (answers.CLOSED, Closed),
    (answers.HTTP_STATUS, HttpStatus),
    (answers.UNREADABLE, Unreadable),
    (answers.TIMED_OUT, Silent),
):
    for _added in (False, True):
        ANSWERS.append((f"{_answer.what} {'after' if _added else 'before'} it", _answer, _kind(_added), _added))
ANSWERS.append((f"{answers.EMPTY.what} before it", answers.EMPTY, Results(), False))
ANSWERS.append((f"{answers.EMPTY.what} after it", answers.EMPTY, Results(added=True), True))
each_answer = pytest.mark.parametrize(
    ("answer", "fault", "added"), [pytest.param(*facts, id=name) for name, *facts in ANSWERS]
)

each_that_passes = pytest.mark.parametrize(
    ("answer", "fault", "added"),
    [pytest.param(answer, fault, added, id=name) for name, answer, fault, added in ANSWERS if answer.retried],
)


def sdk_type(answer: Answer) -> type[Exception]:
    """Return the SDK's exception that the table names."""
    module, _, name = answer.error.partition(".")
    where = {
        "taskqueue": "google.appengine.api.taskqueue",
        "datastore_errors": "google.appengine.api.datastore_errors",
        "apiproxy_errors": "google.appengine.runtime.apiproxy_errors",
        "message": "google.protobuf.message",
    }[module]
    kind: type[Exception] = getattr(importlib.import_module(where), name)
    return kind
