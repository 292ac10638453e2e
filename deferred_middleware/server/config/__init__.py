"""Reads the configuration of the local server: command line, app.yaml, queue.yaml and data directory."""
