"""The commands of ``deferred-middleware``, a module each: ``add_parser()`` says what it takes, ``run()`` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import TypeAlias

    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
    """What ``add_parser()`` of each command adds its own to; argparse has no public name for it."""
