"""Tests of deferred_middleware.testing."""
