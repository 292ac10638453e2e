"""The dozen photographs that the demonstration uploads: from scikit-image's wheel, all in the public domain or CC0.

Only the files are read. The package is never imported, so you can install it without its dependencies. The author and
licence of each image are those in its ``skimage/data/_fetchers.py``.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A file of ``skimage/data`` with its credits."""

    file: str
    title: str
    author: str
    licence: str


CC0: Final = "CC0"
PUBLIC_DOMAIN: Final = "public domain"

# The page shows the last upload first, so the plainest come first here.
PHOTOGRAPHS: Final = (
    Photograph(file="microaneurysms.png", title="Retina, detail", author="Andreas Maier, HRF database", licence=CC0),
    Photograph(file="clock_motion.png", title="Blurred clock", author="Stefan van der Walt", licence=PUBLIC_DOMAIN),
    Photograph(file="gravel.png", title="Gravel", author="CC0Textures, Gravel04", licence=CC0),
    Photograph(file="grass.png", title="Grass", author="linolafett, DeviantArt", licence=CC0),
    Photograph(file="brick.png", title="Brick wall", author="CC0Textures, Bricks25", licence=CC0),
    Photograph(file="camera.png", title="Cameraman", author="Lav Varshney", licence=CC0),
    Photograph(file="retina.jpg", title="Human retina", author="Mikael Häggström, Wikimedia", licence=CC0),
    Photograph(file="hubble_deep_field.jpg", title="Hubble deep field", author="NASA", licence=PUBLIC_DOMAIN),
    Photograph(file="rocket.jpg", title="Falcon 9 launch", author="SpaceX", licence=PUBLIC_DOMAIN),
    Photograph(file="coffee.png", title="Coffee cup", author="Rachel Michetti", licence=CC0),
    Photograph(file="chelsea.png", title="Chelsea the cat", author="Stefan van der Walt", licence=CC0),
    Photograph(file="astronaut.png", title="Eileen Collins", author="NASA", licence=PUBLIC_DOMAIN),
)


class PhotographsMissingError(Exception):
    """The package with the photographs is not installed, or has unexpected contents. The message says what to do."""


def folder() -> Path:
    """Return the folder that holds the photographs. Raise :class:`PhotographsMissingError` if one is missing."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise PhotographsMissingError(
            "the photographs are not installed: run `pip install --no-deps -r requirements-demo.txt` first."
        )
    data = Path(found.origin).parent / "data"
    missing = [photograph.file for photograph in PHOTOGRAPHS if not (data / photograph.file).is_file()]
    if missing:
        raise PhotographsMissingError(f"this release of scikit-image has no {', '.join(missing)} in {data}.")
    return data
