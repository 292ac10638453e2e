"""Tests of deferred_middleware.execution."""
