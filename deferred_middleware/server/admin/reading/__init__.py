"""What people can see: queues, tasks, services, and why a task waits."""
