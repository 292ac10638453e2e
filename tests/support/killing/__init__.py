"""Servers that are killed under load: the clients that add tasks, the app that runs them, and a check of the store."""
