"""Tests of deferred_middleware.enqueue."""
