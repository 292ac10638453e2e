"""The URLs of the app's services, for tasks with HTTP targets: which URL a target has, and which service this is."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Final

from deferred_middleware.wire.protocol import is_loopback

ServiceUrls = tuple[tuple[str, str], ...]
"""Pairs of a service, or ``version.service``, and the URL at which it is reached."""

_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"({_LABEL}\.)?{_LABEL}")
_CLOUD_RUN_DOMAIN: Final = ".run.app"
_MAX_URL_LENGTH: Final = 1024


def parse(value: str | Mapping[str, str] | Iterable[tuple[str, str]]) -> ServiceUrls:
    """Return the pairs in a mapping, or in a text such as ``default=https://…,background=https://…``.

    Raises :class:`ValueError` for a name that is given twice, and for a URL that is not ``https://host``. On this
    machine, ``http://`` is accepted too.
    """
    if isinstance(value, str):
        pairs = [_pair(part) for part in value.split(",")]
    else:
        pairs = list(value.items() if isinstance(value, Mapping) else value)
    urls = tuple((_checked_name(name), _checked_url(url)) for name, url in pairs)
    if len({name for name, _ in urls}) < len(urls):
        raise ValueError(value)
    return urls


def _pair(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals:
        raise ValueError(text)
    return name.strip(), url.strip()


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(name)
    return str.__str__(name)


def _checked_url(url: str) -> str:
    url = url.removesuffix("/")
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    _ = parts.port  # raises ValueError for a port that is not a number
    is_encrypted = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    plain = f"{parts.scheme}://{parts.netloc}" == url and "@" not in url and url.isascii() and url.isprintable()
    if not (host and is_encrypted and plain and " " not in url and len(url) <= _MAX_URL_LENGTH):
        raise ValueError(url)
    return url


def own_service(urls: ServiceUrls, named: str | None, cloud_run_service: str | None) -> str | None:
    """Return the name that ``urls`` has for the service that this process belongs to; None if that is not clear.

    ``named`` is the name in the environment (``GAE_SERVICE``). On Cloud Run, the platform tells the name of the Cloud
    Run service. It is either the same name, or the first part of the service's URL on ``run.app``.
    """
    services = [name for name, _ in urls if "." not in name]
    if named is not None:
        return named
    if cloud_run_service is None:
        return "default" if "default" in services or not services else None
    if cloud_run_service in services:
        return cloud_run_service
    # https://SERVICE-PROJECTNUMBER.REGION.run.app, or https://SERVICE-HASH-REGION.a.run.app
    # (https://cloud.google.com/run/docs/triggering/https-request).
    pattern = re.compile(rf"{re.escape(cloud_run_service)}-([0-9]+|[a-z0-9]+-[a-z]{{2}})")
    matching = [name for name, url in urls if "." not in name and _is_of(pattern, url)]
    if len(matching) == 1:
        return matching[0]
    return services[0] if len(services) == 1 else None


def _is_of(pattern: re.Pattern[str], url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    return host.endswith(_CLOUD_RUN_DOMAIN) and pattern.fullmatch(host.partition(".")[0]) is not None


def url_for(urls: ServiceUrls, service: str, version: str | None) -> tuple[str, str] | None:
    """Return the URL of a service, or of one of its versions, and the audience for it; None if there is none.

    A version is the tag of a Cloud Run revision, unless ``urls`` has ``version.service``. The audience is the service's
    own URL, as Cloud Run expects it also for a tag
    (https://cloud.google.com/run/docs/authenticating/service-to-service).
    """
    found = dict(urls)
    base = found.get(service)
    if version is None:
        return None if base is None else (base, base)
    listed = found.get(f"{version}.{service}")
    if listed is not None:
        return listed, base or listed
    if base is None or not (urllib.parse.urlsplit(base).hostname or "").endswith(_CLOUD_RUN_DOMAIN):
        return None
    scheme, _, rest = base.partition("://")
    return f"{scheme}://{version}---{rest}", base
