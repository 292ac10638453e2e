"""Tests of the local server as a person runs it: the real command and real processes."""
