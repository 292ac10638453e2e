"""The command ``deferred-middleware``: each module has the commands of one subject in its ``COMMANDS``."""
