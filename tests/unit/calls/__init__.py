"""Tests of deferred_middleware.calls.call."""
