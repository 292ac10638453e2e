"""Tests of the integrations with web frameworks, and of the middleware around and beneath other layers."""
