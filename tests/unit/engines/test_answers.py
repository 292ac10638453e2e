"""Tests of an engine's answers: their tables in the manual, and the mapping of the SDK's exceptions."""

from __future__ import annotations

import importlib.util

import pytest
from google.appengine.api import datastore_errors, taskqueue
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


@pytest.mark.parametrize("code", [code for code in answers.BY_CODE if code >= 10_000])
def test_a_failure_of_the_datastore_is_both(code: int) -> None:
    """As in the SDK, it is caught as the error of the datastore or of the API, and as ``taskqueue.DatastoreError``."""
    error = answers.exception_for_code(code, "no")
    of_api = answers.BY_CODE[code].error.startswith("apiproxy_errors.")
    assert isinstance(error, apiproxy_errors.Error if of_api else datastore_errors.Error)
    assert isinstance(error, taskqueue.DatastoreError)


def test_what_is_the_same_for_each_task_is_not_asked_again() -> None:
    """An app without quota, or a queue that is switched off, refuses every task of an add."""
    told = {answer.what for answer in answers.BY_RPC_ERROR.values() if answer.of_queue}
    assert told == {"CALL_NOT_FOUND", "OVER_QUOTA", "CAPABILITY_DISABLED", "FEATURE_DISABLED"}


def test_a_call_without_a_thread_may_be_made_later() -> None:
    """It is tried again, and the task may be there by then."""
    assert answers.NO_THREAD.retried
    assert answers.NO_THREAD.maybe_enqueued
