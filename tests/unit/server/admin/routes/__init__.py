"""Tests of the JSON API's routes."""
