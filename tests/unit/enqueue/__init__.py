"""Tests of deferred_middleware.enqueue.api."""
