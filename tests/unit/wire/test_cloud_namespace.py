"""Tests of the namespace of google-cloud-ndb's contexts."""

from __future__ import annotations

from typing import Any

import pytest
from google.cloud import ndb

from deferred_middleware.errors import PayloadError, sdk_types
from deferred_middleware.wire import cloud_namespace, namespace


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a client, in a process that does without the SDK."""
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", "127.0.0.1:9")
    monkeypatch.setattr(namespace, "manager", None)
    monkeypatch.setattr(sdk_types, "HAS_SDK", False)
    return ndb.Client(project="shop", namespace="of-the-client")


@pytest.mark.parametrize(
    ("options", "header"), [({"namespace": "tenant"}, "tenant"), ({"namespace": ""}, "(default)"), ({}, "(default)")]
)
def test_the_header_is_that_of_the_context(client: Any, options: dict[str, str], header: str) -> None:
    """A task has the namespace that the context sets, and that of the client is not sent along."""
    assert namespace.header_value() == "(default)"
    with client.context(**options):
        assert namespace.header_value() == header


@pytest.mark.parametrize("name", ["tenant", "(default)"])
def test_a_task_runs_in_its_namespace(client: Any, name: str) -> None:
    """The namespace of a task is that of a context around it, and the context of the request comes back."""
    with client.context(namespace="of-the-host") as context:
        with namespace.restored({"HTTP_X_DEFERRED_NAMESPACE": name}):
            key = ndb.Key("Kind", 1)
            assert key.namespace() == ("of-the-client" if name == "(default)" else name)
            with namespace.restored({"HTTP_X_DEFERRED_NAMESPACE": "another"}):
                assert ndb.Key("Kind", 1).namespace() == "another"
            assert ndb.Key("Kind", 1).namespace() == key.namespace()
        assert ndb.Key("Kind", 1).namespace() == "of-the-host"
        assert ndb.get_context() is context


def test_without_a_context_a_namespace_is_an_error(client: Any) -> None:
    """A task of a tenant isn't run where its namespace can't be set; a task of the default namespace is."""
    with pytest.raises(PayloadError, match=r"client\.context"):
        namespace.enter({"HTTP_X_DEFERRED_NAMESPACE": "tenant"})

    with namespace.restored({"HTTP_X_DEFERRED_NAMESPACE": "(default)"}):
        assert cloud_namespace.get_namespace() == ""
