"""Tests of deferred_middleware.server.config."""
