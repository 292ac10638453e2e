"""Who takes a task: the contract, and what its implementations have in common."""
