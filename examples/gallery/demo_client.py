"""The demonstration's HTTP requests to the gallery, like those of a browser."""

from __future__ import annotations

import http.client
import io
import json
import mimetypes
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from typing import Any

from PIL import Image

from demo_server import DemoError

TIMEOUT_SECONDS = 60


class GalleryClient:
    """The gallery at ``address``, such as ``http://127.0.0.1:8080``."""

    def __init__(self, address: str) -> None:
        self._address = address

    def upload(self, filename: str, data: bytes) -> str:
        """Upload a photograph and return its id."""
        boundary = uuid.uuid4().hex
        media_type = mimetypes.guess_type(filename)[0] or "application/octet-stream"
        head = (
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="photo"; filename="{filename}"\r\n'
            f"Content-Type: {media_type}\r\n\r\n"
        )
        body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        answer = self._ask("/photos", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        return str(json.loads(answer)["photos"][0]["id"])

    def photos(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the gallery's data about the photographs, in the order of ``ids``."""
        query = urllib.parse.urlencode([("id", photo_id) for photo_id in ids])
        return list(json.loads(self._ask(f"/api/photos?{query}"))["photos"])

    def size_of_image(self, path: str) -> tuple[int, int]:
        """Fetch a picture, decode it, and return its width and height in pixels."""
        data = self._ask(path)
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return image.width, image.height
        except OSError as error:
            raise DemoError(f"{path} is no picture that can be decoded: {error}") from error

    def _ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
        request = urllib.request.Request(self._address + path, body, {"Accept": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            with error:
                excerpt = error.read(500).decode(errors="replace").strip()
            raise DemoError(f"{request.get_method()} {path} was answered with {error.code}: {excerpt}") from error
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"{request.get_method()} {path} got no answer: {error}") from error
