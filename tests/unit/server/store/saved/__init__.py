"""Tests of deferred_middleware.server.store.saved."""
