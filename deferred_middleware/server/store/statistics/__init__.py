"""Figures of what has happened: how tasks failed, how many ran, and how long they waited and took."""
