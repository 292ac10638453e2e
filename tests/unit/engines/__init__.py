"""Tests of deferred_middleware.engines."""
