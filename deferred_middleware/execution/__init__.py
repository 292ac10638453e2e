"""From a delivered request to an outcome."""
