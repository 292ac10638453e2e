"""Tests of deferred_middleware.cli."""
