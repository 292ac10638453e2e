"""Tests that run the local server as a user does: the real command and real processes."""
