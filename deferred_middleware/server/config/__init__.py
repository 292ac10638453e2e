"""What the local server is told: command line, app.yaml, queue.yaml, data directory."""
