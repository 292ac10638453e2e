"""A simulated power cut: record what a process writes and syncs, and rebuild what a disk may contain afterwards."""
