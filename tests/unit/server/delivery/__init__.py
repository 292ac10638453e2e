"""Tests of deferred_middleware.server.delivery."""
