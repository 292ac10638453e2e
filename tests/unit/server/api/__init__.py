"""Tests of deferred_middleware.server.api."""
