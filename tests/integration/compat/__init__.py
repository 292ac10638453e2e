"""Tests of the modules that replace older libraries."""
