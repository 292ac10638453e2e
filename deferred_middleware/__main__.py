"""``python -m deferred_middleware``: the ``deferred-middleware`` command."""

import sys

from deferred_middleware.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
