"""Modules that the tests share: callables to defer, fakes, real servers, and fixed data."""
