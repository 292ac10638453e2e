"""The gallery's image processing: check, scale, find colours. Pure functions from bytes to values.

This module doesn't depend on App Engine, tasks or the web, so you can read and test it alone.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS: Final = 50_000_000
"""Larger pictures are rejected after reading only their header. Decoding this many pixels takes 150 MB of memory."""

MEDIA_TYPES: Final = {
    "GIF": "image/gif",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # Pillow's name for a JPEG with further pictures in the same file, as many phones write it
    "PNG": "image/png",
    "TIFF": "image/tiff",
    "WEBP": "image/webp",
}
"""The accepted formats, by Pillow's names, with their media types."""

THUMBNAIL_MEDIA_TYPE: Final = "image/jpeg"

_DECODERS = sorted(MEDIA_TYPES.keys() - {"MPO"})
_PALETTE_SAMPLE_PX = 256
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = frozenset({5, 6, 7, 8})  # the EXIF orientations that swap width and height

# Pillow's own guard only warns between its limit and twice that. `_opened` enforces MAX_PIXELS before anything is
# decoded.
Image.MAX_IMAGE_PIXELS = None


class BadImageError(ValueError):
    """The bytes are not a picture that the gallery accepts. The message is for the person who sent them."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The media type of a picture, and its size in pixels after applying its orientation."""

    media_type: str
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A smaller copy of a picture, encoded as :data:`THUMBNAIL_MEDIA_TYPE`."""

    data: bytes
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class Swatch:
    """One colour of a palette, as ``#rrggbb``, and its share of the area (0 to 1)."""

    colour: str
    share: float


def inspect(data: bytes) -> Facts:
    """Decode ``data`` completely, and return its facts.

    Raises :class:`BadImageError` if it is not a picture, or the format isn't accepted, or it is too large or truncated.
    """
    with _opened(data) as image:
        image.load()
        width_px, height_px = image.size
        if image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS:
            width_px, height_px = height_px, width_px
        return Facts(media_type=MEDIA_TYPES[str(image.format)], width_px=width_px, height_px=height_px)


def scale(data: bytes, longest_px: int) -> Scaled:
    """Return an upright copy whose longer side is at most ``longest_px`` pixels. It is never larger than the original.

    Raises :class:`BadImageError` as :func:`inspect` does.
    """
    with _opened(data) as image:
        colour_profile = image.info.get("icc_profile") if image.mode in {"RGB", "RGBA"} else None
        small = image if image.mode in {"RGB", "L"} else _on_white(image)
        orientation = image.getexif().get(_EXIF_ORIENTATION)
        small.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
        # Rotate after scaling, when there are fewer pixels.
        if orientation is not None:
            small.getexif()[_EXIF_ORIENTATION] = orientation
        small = ImageOps.exif_transpose(small).convert("RGB")
        encoded = io.BytesIO()
        small.save(
            encoded,
            "JPEG",
            quality=84,
            optimize=True,
            progressive=True,
            exif=b"",  # everybody may see the copy, so it must not contain the place or time of the photograph
            icc_profile=colour_profile,
        )
        return Scaled(data=encoded.getvalue(), width_px=small.width, height_px=small.height)


def palette(data: bytes, colours: int = 6) -> tuple[Swatch, ...]:
    """Return the picture's main colours, at most ``colours`` of them, the most frequent first.

    The shares add up to 1. Raises :class:`BadImageError` as :func:`inspect` does.
    """
    with _opened(data) as image:
        small = image if image.mode in {"RGB", "L"} else _on_white(image)
        small.thumbnail((_PALETTE_SAMPLE_PX, _PALETTE_SAMPLE_PX), reducing_gap=2.0)
        indexed = small.convert("RGB").quantize(colours, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
        found: Counter[str] = Counter()
        pixels = indexed.convert("RGB").getcolors(maxcolors=256) or []
        for count, rgb in pixels:
            found["#{:02x}{:02x}{:02x}".format(*rgb)] += count  # type: ignore[misc]  # a tuple, as it is RGB
        total = found.total()
        return tuple(Swatch(colour=colour, share=count / total) for colour, count in found.most_common())


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a picture if its header allows decoding it. Turn Pillow's exceptions into our error."""
    try:
        with Image.open(io.BytesIO(data), formats=_DECODERS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(
                    f"it has {image.width} x {image.height} pixels; at most "
                    f"{MAX_PIXELS // 1_000_000} million are taken."
                )
            yield image
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("it is no JPEG, PNG, WebP, GIF or TIFF picture.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # Pillow's decoders raise any of these for a file that is truncated or damaged.
        raise BadImageError(f"the picture can't be decoded, it may be damaged ({error}).") from error


def _on_white(image: Image.Image) -> Image.Image:
    """Return ``image`` as RGB. Transparent pixels become white, and 16-bit grey becomes 8-bit."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda level: level / 256).convert("L").convert("RGB")
    if image.mode not in {"RGBA", "LA", "PA"} and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    sheet = Image.new("RGB", layer.size, "white")
    sheet.paste(layer, mask=layer.getchannel("A"))
    return sheet
