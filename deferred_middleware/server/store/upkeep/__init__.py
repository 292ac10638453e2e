"""What keeps the task store's files sound: they are compared with what was acknowledged."""
