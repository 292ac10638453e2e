"""A task on its way to an app: both ends of the connection."""
