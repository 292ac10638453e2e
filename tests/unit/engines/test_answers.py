"""Tests of an engine's answers: their tables in the manual, and the mapping of the SDK's exceptions."""

from __future__ import annotations

import importlib.util

import pytest
from google.appengine.api import taskqueue
from google.appengine.runtime import apiproxy_errors
from google.protobuf.message import DecodeError

from deferred_middleware.engines import answers
from tests.support.repository import ROOT

DOCS = ROOT / "docs"


def test_the_manuals_table_is_this_one() -> None:
    """docs/answers.rst is the output of docs/answers_table.py. Run the script after a change of the tables."""
    spec = importlib.util.spec_from_file_location("answers_table", DOCS / "answers_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert (DOCS / "answers.rst").read_text() == module.page()


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (taskqueue.TransientError(), answers.BY_CODE[2]),
        (taskqueue.TombstonedTaskError(), answers.BY_CODE[11]),
        (apiproxy_errors.DeadlineExceededError(), answers.BY_RPC_ERROR[12]),
        (apiproxy_errors.RPCFailedError(), answers.BY_RPC_ERROR[0]),
        (AssertionError(), answers.EMPTY),
        (DecodeError(), answers.UNREADABLE),
        (taskqueue.Error(), answers.UNKNOWN),
        (OSError(), answers.UNKNOWN),
    ],
)
def test_an_exception_is_understood(error: Exception, answer: answers.Answer) -> None:
    """An exception of an engine without codes, such as Cloud Tasks, maps to its answer."""
    assert answers.for_exception(error) is answer


def test_an_unknown_end_may_have_added_the_task() -> None:
    """An unknown error is not retried, and says that the task may be enqueued."""
    assert answers.UNKNOWN.maybe_enqueued
    assert not answers.UNKNOWN.retried
    assert not any(answer.retried and answer.of_queue for answer in answers.BY_CODE.values())
