"""Tests of the modules that stand in for older libraries."""
