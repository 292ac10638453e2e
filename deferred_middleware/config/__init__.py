"""What a process is told once: settings, secret keys, hooks and its deployment."""
