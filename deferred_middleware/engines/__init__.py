"""The engines, which accept tasks: their contract, its implementations, and the code that these share."""
