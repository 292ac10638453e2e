"""The app processes: start, restart, environment, and what runs inside."""
