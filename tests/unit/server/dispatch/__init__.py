"""Tests of deferred_middleware.server.dispatch."""
