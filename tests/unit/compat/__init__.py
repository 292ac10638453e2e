"""Tests of deferred_middleware.compat."""
