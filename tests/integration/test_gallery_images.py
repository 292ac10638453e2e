"""The gallery example's picture functions: accepted formats, scaling and palettes."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

GALLERY = Path(__file__).resolve().parents[2] / "examples" / "gallery"


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the example's ``images`` module as the example does."""
    monkeypatch.syspath_prepend(str(GALLERY))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.delitem(importlib.import_module("sys").modules, "images", raising=False)
    return importlib.import_module("images")


def encoded(picture: Any, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    """Return a JPEG of 60 x 40 pixels whose left half is red, with an EXIF orientation."""
    picture = Image.new("RGB", (60, 40), "blue")
    picture.paste("red", (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, "JPEG", exif=exif, quality=95)


def pixel(picture: Image.Image, at: tuple[int, int]) -> tuple[int, ...]:
    """Return the bands of one pixel of a picture with several bands."""
    bands = picture.getpixel(at)
    assert isinstance(bands, tuple)
    return bands


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("TIFF", "image/tiff"),
    ],
)
def test_each_format_is_recognised(images: ModuleType, kind: str, media_type: str) -> None:
    """In every accepted format, the media type is detected from the bytes."""
    facts = images.inspect(encoded(Image.new("RGB", (30, 20)), kind))
    assert (facts.media_type, facts.width_px, facts.height_px) == (media_type, 30, 20)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, I am text", b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"],
    ids=["empty", "text", "pdf", "svg", "signature only"],
)
def test_what_is_no_picture_is_refused(images: ModuleType, data: bytes) -> None:
    """Bytes that are not a picture raise the gallery's own error, whatever Pillow raises."""
    with pytest.raises(images.BadImageError):
        images.inspect(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_cut_short_is_refused(images: ModuleType, kind: str) -> None:
    """A truncated picture is refused, even if its header is valid."""
    noise = Image.effect_noise((200, 200), 80).convert("RGB")
    whole = encoded(noise, kind)
    with pytest.raises(images.BadImageError, match="picture"):
        images.inspect(whole[: len(whole) // 2])


def test_too_many_pixels_are_refused_from_the_header(images: ModuleType) -> None:
    """A small file that would decode to a huge picture is refused, and the error has its size."""
    bomb = encoded(Image.new("1", (10_000, 10_000)))
    with pytest.raises(images.BadImageError, match="10000 x 10000"):
        images.inspect(bomb)


@pytest.mark.parametrize(("size_px", "expected"), [(160, (160, 80)), (320, (320, 160)), (1280, (400, 200))])
def test_the_longer_side_decides_and_nothing_is_enlarged(
    images: ModuleType, size_px: int, expected: tuple[int, int]
) -> None:
    """A copy's longer side has the requested size, or the original's size if that is smaller."""
    scaled = images.scale(encoded(Image.new("RGB", (400, 200), "teal")), size_px)
    assert (scaled.width_px, scaled.height_px) == expected
    assert Image.open(io.BytesIO(scaled.data)).size == expected


@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [(1, (60, 40), (5, 20)), (3, (60, 40), (55, 20)), (6, (40, 60), (20, 5)), (8, (40, 60), (20, 55))],
)
def test_pictures_are_turned_upright(
    images: ModuleType, orientation: int, size: tuple[int, int], red_at: tuple[int, int]
) -> None:
    """The EXIF orientation is applied to the reported size and to a copy's pixels, and then removed."""
    data = turned(orientation)
    facts = images.inspect(data)
    copy = Image.open(io.BytesIO(images.scale(data, 160).data))
    red, _, blue = pixel(copy, red_at)
    assert (facts.width_px, facts.height_px) == size
    assert copy.size == size
    assert red > 200 > blue
    assert not copy.getexif()


def test_orientation_survives_a_change_of_mode(images: ModuleType) -> None:
    """A picture that must first be converted to RGB is also turned upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGBA", (60, 40), (255, 0, 0, 128)), "PNG", exif=exif)
    scaled = images.scale(data, 30)
    assert (scaled.width_px, scaled.height_px) == (20, 30)


def test_transparent_parts_become_white(images: ModuleType) -> None:
    """A copy has no transparency; transparent parts are white."""
    data = encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)))
    copy = Image.open(io.BytesIO(images.scale(data, 20).data))
    assert min(pixel(copy, (10, 10))) > 250


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_gives_a_copy_and_a_palette(images: ModuleType, mode: str) -> None:
    """Grey, indexed, transparent, CMYK and 16-bit pictures give a copy and a palette."""
    data = encoded(Image.new(mode, (40, 30)), "TIFF" if mode == "CMYK" else "PNG")
    assert Image.open(io.BytesIO(images.scale(data, 20).data)).mode == "RGB"
    assert sum(swatch.share for swatch in images.palette(data)) == pytest.approx(1)


def test_sixteen_bit_grey_keeps_its_brightness(images: ModuleType) -> None:
    """Medium grey of 16 bits becomes medium grey of 8 bits, not white."""
    data = encoded(Image.new("I;16", (20, 20), 32768))
    grey = pixel(Image.open(io.BytesIO(images.scale(data, 20).data)), (10, 10))[0]
    assert 120 < grey < 136


def test_a_palette_has_the_colours_by_their_area(images: ModuleType) -> None:
    """Three plain areas give three colours with their shares, the largest first."""
    picture = Image.new("RGB", (100, 100), "#2040c0")
    picture.paste("#e03020", (0, 0, 100, 30))
    picture.paste("#f0f0f0", (0, 0, 10, 100))
    found = images.palette(encoded(picture))
    assert [swatch.colour for swatch in found] == ["#2040c0", "#e03020", "#f0f0f0"]
    assert [round(swatch.share, 2) for swatch in found] == [0.63, 0.27, 0.10]


def test_a_palette_is_never_longer_than_asked_and_adds_up(images: ModuleType) -> None:
    """A picture of very many colours gives the requested number of colours, whose shares add up to 1."""
    found = images.palette(encoded(Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 90).convert("RGB")), 6)
    assert 1 < len(found) <= 6
    assert sum(swatch.share for swatch in found) == pytest.approx(1)
