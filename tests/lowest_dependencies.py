"""Print the lowest versions that ``setup.cfg`` allows of what users of the package depend on, as pip requirements.

``python tests/lowest_dependencies.py | xargs pip install``
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

EXTRAS = ("server", "reload")
_MINIMUM = re.compile(r"(?P<name>[A-Za-z0-9._-]+)>=(?P<version>[0-9][0-9.]*)")


def lowest(setup_cfg: str) -> list[str]:
    """Return the requirements, each pinned to its lowest version."""
    config = configparser.ConfigParser()
    config.read_string(setup_cfg)
    listed = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in EXTRAS)]
    lines = [line.strip() for text in listed for line in text.splitlines() if line.strip()]
    pinned = []
    for line in lines:
        if line.startswith("deferred_middleware["):
            continue
        found = _MINIMUM.fullmatch(line)
        if found is None:
            raise ValueError(f"{line!r} has no lowest version")
        pinned.append(f"{found['name']}=={found['version']}.*")
    return pinned


if __name__ == "__main__":
    print("\n".join(lowest((Path(__file__).parents[1] / "setup.cfg").read_text())))  # noqa: T201 - it is for xargs
