"""Tests of deferred_middleware.wire."""
