"""Tests of the glue for web frameworks, and of the middleware around and beneath them."""
