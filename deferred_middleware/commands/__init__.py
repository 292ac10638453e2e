"""The commands of ``deferred-middleware``, a module each: ``add_parser()`` says what it takes, ``run()`` does it."""
