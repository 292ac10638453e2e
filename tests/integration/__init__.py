"""Tests of several parts together, with real sockets and processes where they matter."""
