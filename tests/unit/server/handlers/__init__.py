"""Tests of deferred_middleware.server.handlers."""
