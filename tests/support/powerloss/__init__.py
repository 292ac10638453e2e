"""A power cut, simulated: record what a process writes and syncs, and rebuild what a disk may hold after it."""
