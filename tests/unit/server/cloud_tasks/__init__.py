"""Tests of deferred_middleware.server.cloud_tasks."""
