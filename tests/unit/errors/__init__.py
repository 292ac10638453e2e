"""Tests of deferred_middleware.errors."""
