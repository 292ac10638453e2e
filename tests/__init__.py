"""The tests: of single modules in unit, of several together in integration, of the running server in acceptance."""
