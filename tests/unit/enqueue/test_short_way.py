"""Tests that a deferred call passes few modules of the package, and enters each once."""

from __future__ import annotations

import secrets
import sys

import pytest

from deferred_middleware import Settings, defer
from deferred_middleware.config.hooks import Hooks
from deferred_middleware.config.process import install_hooks, install_settings
from deferred_middleware.engines import request_scope
from deferred_middleware.engines.request_scope import LOSES_REQUESTS
from tests.support import sample
from tests.support.delivering import Queued
from tests.support.module_trace import documented_way, trace

MAX_MODULES = 10
"""The maximum number of modules that a deferred call may pass."""


@pytest.fixture(autouse=True)
def plain_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be an app without hooks and OpenTelemetry, which other tests of this process may have installed or imported."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    install_hooks(Hooks())


@pytest.mark.parametrize("signed", [True, False])
def test_a_deferred_call_enters_few_modules_and_each_once(queued: Queued, signed: bool) -> None:
    """In a warm process, a call enters each module on its way to the engine once and never returns to one."""
    install_settings(Settings(secret_keys=(secrets.token_hex(32),) if signed else ()))  # type: ignore[arg-type]
    for number in range(2):
        defer(sample.note, number)

    way = trace(lambda: defer(sample.note, 2))

    assert len(queued.tasks()) == 3
    assert way.entered_again == ()
    assert way.upward == ()
    documented = [name for name in documented_way("short-way-of-defer") if signed or name != "wire.signature"]
    modules = [name for name in way.modules if not (LOSES_REQUESTS and name == request_scope.__name__)]
    assert [name.removeprefix("deferred_middleware.") for name in modules] == documented
    assert len(modules) <= MAX_MODULES
