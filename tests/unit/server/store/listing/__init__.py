"""Tests of deferred_middleware.server.store.listing."""
