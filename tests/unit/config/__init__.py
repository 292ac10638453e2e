"""Tests of deferred_middleware.config."""
