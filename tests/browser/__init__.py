"""Tests of the page in a real browser, with a real server and real tasks."""
