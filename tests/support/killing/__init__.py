"""Servers that are killed under load: who adds tasks, who runs them, and what the store holds after a kill."""
