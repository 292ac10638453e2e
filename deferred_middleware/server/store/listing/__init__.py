"""What people list: tasks by filters."""
