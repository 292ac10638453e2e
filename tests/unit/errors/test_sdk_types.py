"""Tests of a process without the SDK: its errors, its failures on purpose, and its retry options."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap

import pytest
from google.appengine.api import datastore_errors, taskqueue
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.errors import sdk_types
from tests.support.repository import ROOT

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] == ["google", "appengine"]:
            raise ImportError(name)

if BLOCKED:
    sys.meta_path.insert(0, Block())
"""


def run(source: str, *, blocked: bool = True, **environ: str) -> str:
    """Run a program in a process whose tasks have URLs; return what it printed."""
    code = BLOCK.replace("BLOCKED", repr(blocked)) + textwrap.dedent(source)
    # Other tests' variables must not select an engine.
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    own = {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "DEFERRED_ENGINE": "cloud-tasks",
        "DEFERRED_SERVICE_URLS": "default=https://shop.example.com",
        "DEFERRED_SECRET_KEYS": "k" * 32,
        "GOOGLE_CLOUD_PROJECT": "shop",
        "LOCATION_ID": "europe-west1",
        **environ,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=own, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", [taskqueue, datastore_errors, apiproxy_errors], ids=lambda module: module.__name__)
def test_the_stand_ins_have_the_bases_of_the_sdk(module: object) -> None:
    """A stand-in has the name and the bases of the SDK's type, so that code that catches a base works."""
    name = str(vars(module)["__name__"]).rpartition(".")[2]
    for kind in vars(module).values():
        if not (inspect.isclass(kind) and issubclass(kind, Exception)) or kind.__module__ != vars(module)["__name__"]:
            continue
        if not kind.__name__.endswith(("Error", "Timeout", "Applying")):
            continue
        stand_in = sdk_types._stand_in(name, kind.__name__)

        theirs = [base.__name__ for base in kind.__mro__]
        ours = [base.__name__ for base in stand_in.__mro__ if base is not sdk_types.StandIn]
        assert ours == theirs


def test_every_public_name_works_without_the_sdk() -> None:
    """Each public name can be imported if the SDK can't be, and nothing of it is imported."""
    printed = run(
        """
        import sys
        import deferred_middleware
        for name in deferred_middleware.__all__:
            getattr(deferred_middleware, name)
        print([name for name in sys.modules if name.startswith("google.appengine")])
        """
    )

    assert printed.strip() == "[]"


def test_failures_on_purpose_are_known() -> None:
    """The stand-ins end a task or ask for a retry, and so do the SDK's types if the app imports them."""
    source = """
        from deferred_middleware import PermanentTaskFailure, SingularTaskFailure, RetryLater
        from deferred_middleware.errors import task_failures
        kinds = [PermanentTaskFailure, SingularTaskFailure, RetryLater, ValueError]
        if not BLOCKED:
            from google.appengine.ext import deferred
            assert PermanentTaskFailure is not deferred.PermanentTaskFailure
            kinds += [deferred.PermanentTaskFailure, deferred.SingularTaskFailure]
        print([(task_failures.is_permanent(kind), task_failures.is_singular(kind)) for kind in kinds])
    """
    ours = [(True, False), (False, True), (False, True), (False, False)]

    assert run(source.replace("BLOCKED", "True")).strip() == str(ours)
    assert run(source.replace("BLOCKED", "False"), blocked=False).strip() == str([*ours, (True, False), (False, True)])


def test_errors_are_the_sdks_too_if_the_app_imports_it() -> None:
    """If the app imports the SDK, also later, it can catch errors by the SDK's types."""
    printed = run(
        """
        import sys
        from deferred_middleware import defer, EnqueueError
        from deferred_middleware.errors import sdk

        def raised(**options):
            try:
                defer(print, **options)
            except Exception as error:
                return error

        before = raised(_name="a b")
        assert "google.appengine.api" not in sys.modules
        from google.appengine.api import taskqueue
        after = raised(_name="a b")
        assert not isinstance(before, taskqueue.Error) and isinstance(after, taskqueue.InvalidTaskNameError)
        assert isinstance(after, type(before))
        no_transaction = raised(_transactional=True)
        assert isinstance(no_transaction, (taskqueue.BadTransactionStateError))
        explained = sdk.explain(sdk.taskqueue.TaskAlreadyExistsError("x"), "label", "queue", "name")
        assert isinstance(explained, taskqueue.TaskAlreadyExistsError) and isinstance(explained, EnqueueError)
        print(str(after) == str(before), str(explained).startswith("label was not"))
        """,
        blocked=False,
    )

    assert printed.strip() == "True True"


def test_retry_options_are_those_of_the_sdk() -> None:
    """Without the SDK, retry options have the same names, checks and rounding."""
    given = {"task_retry_limit": 3, "task_age_limit": 2.5, "min_backoff_seconds": 0.5, "max_doublings": 4}

    ours, theirs = sdk_types.RetryOptions(**given), taskqueue.TaskRetryOptions(**given)  # type: ignore[arg-type]
    for name in (*given, "max_backoff_seconds"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert sdk_types.is_retry_options(ours)
    assert sdk_types.is_retry_options(theirs)
    for wrong in ({"task_retry_limit": -1}, {"min_backoff_seconds": 3, "max_backoff_seconds": 2}):
        with pytest.raises(Exception, match=r"negative|less than") as caught:
            sdk_types.RetryOptions(**wrong)
        assert type(caught.value).__name__ == "InvalidTaskRetryOptionsError"
        with pytest.raises(taskqueue.InvalidTaskRetryOptionsError):
            taskqueue.TaskRetryOptions(**wrong)
    with pytest.raises(TypeError):
        sdk_types.RetryOptions(limit=3)  # type: ignore[call-arg]


def test_what_needs_google_cloud_ndb_is_refused_without_it() -> None:
    """Without google-cloud-ndb, a large payload and a transactional task are refused, with the way out."""
    printed = run(
        """
        import os
        class NoNdb:
            def find_spec(self, name, path=None, target=None):
                if name.startswith("google.cloud.ndb"):
                    raise ImportError(name)
        sys.meta_path.insert(0, NoNdb())
        from deferred_middleware import defer, EnqueueError
        for args, options in (((os.urandom(1_100_000),), {}), ((), {"_transactional": True})):
            try:
                defer(print, *args, **options)
            except EnqueueError as error:
                print(type(error).__name__, "pip install 'deferred_middleware[cloud]'" in str(error))
        """
    )

    assert printed.split() == ["TaskTooLargeError", "True", "TransactionError", "True"]
