"""The configuration of a process: settings, secret keys, hooks and deployment; the only process-wide state."""
