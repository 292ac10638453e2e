"""Tests of deferred_middleware.server.admin.reading."""
