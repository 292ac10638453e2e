"""Tests of several parts together, with real sockets and processes where needed."""
