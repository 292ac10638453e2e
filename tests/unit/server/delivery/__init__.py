"""Tests of deferred_middleware.server.delivery.http_attempt."""
