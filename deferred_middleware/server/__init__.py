"""The local server: App Engine's task queue on one machine."""
