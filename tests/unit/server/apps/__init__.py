"""Tests of deferred_middleware.server.apps."""
