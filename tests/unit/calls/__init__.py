"""Tests of deferred_middleware.calls."""
