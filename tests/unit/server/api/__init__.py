"""Tests of deferred_middleware.server.admin.json_api."""
