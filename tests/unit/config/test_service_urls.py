"""Tests of the services' URLs: which are accepted, which service a process is, and where a target leads."""

from __future__ import annotations

import pytest

from deferred_middleware import Settings, SettingsError
from deferred_middleware.config import service_urls
from deferred_middleware.config.process import Deployment

RUN = "https://shop-123456.europe-west1.run.app"
JOBS = "https://shop-jobs-abcdef-ew.a.run.app"
URLS = (("default", RUN), ("background", JOBS))


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("default=https://shop.example.com", (("default", "https://shop.example.com"),)),
        (f"default={RUN}/, background={JOBS}", URLS),
        ("default=http://127.0.0.1:8080", (("default", "http://127.0.0.1:8080"),)),
        ("default=http://localhost:8080,v2.default=https://x.example.com", None),
        ("default=http://[::1]:8080", None),
    ],
)
def test_urls_are_read(text: str, urls: object) -> None:
    """The text is a list of services and URLs. On this machine a URL need not be encrypted."""
    found = service_urls.parse(text)

    assert urls is None or found == urls
    assert service_urls.parse(dict(found)) == service_urls.parse(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "https://shop.example.com",
        "default=shop.example.com",
        "default=http://shop.example.com",
        "default=http://10.0.0.1",
        "default=http://localhost.example.com",
        "default=https://shop.example.com/tasks",
        "default=https://shop.example.com?x=1",
        "default=https://user@shop.example.com",
        "default=https://127.0.0.1@shop.example.com",
        "default=https://",
        "default=https://shop.example.com:port",
        "default=ftp://shop.example.com",
        "Default=https://shop.example.com",
        "a.b.c=https://shop.example.com",
        "default=https://a.example.com,default=https://b.example.com",
        "default=https://sh op.example.com",
        "default=",
        "=https://shop.example.com",
    ],
)
def test_anything_else_is_an_error(text: str) -> None:
    """A URL without https off this machine, with a path or without a host is refused at the start."""
    with pytest.raises(SettingsError, match="DEFERRED_SERVICE_URLS"):
        Settings.from_environ({"DEFERRED_ENGINE": "cloud-tasks", "DEFERRED_SERVICE_URLS": text})


@pytest.mark.parametrize(
    "environ",
    [
        {"DEFERRED_SERVICE_URLS": f"default={RUN}"},
        {"DEFERRED_SERVICE_URLS": f"default={RUN}", "DEFERRED_ENGINE": "app-engine"},
        {"DEFERRED_ENGINE": "cloudtasks"},
        {"DEFERRED_SERVICE_ACCOUNT": "nobody"},
        {"DEFERRED_AUDIENCE": "a b"},
    ],
)
def test_wrong_settings_are_errors(environ: dict[str, str]) -> None:
    """URLs need Cloud Tasks as the engine, and an account is an e-mail address."""
    with pytest.raises(SettingsError):
        Settings.from_environ(environ)


@pytest.mark.parametrize(
    ("environ", "urls", "service"),
    [
        ({}, URLS, "default"),
        ({}, (("web", RUN),), None),
        ({"GAE_SERVICE": "background"}, URLS, "background"),
        ({"K_SERVICE": "shop"}, URLS, "default"),
        ({"K_SERVICE": "shop-jobs"}, URLS, "background"),
        ({"K_SERVICE": "background"}, URLS, "background"),
        ({"K_SERVICE": "anything"}, (("default", "https://shop.example.com"),), "default"),
        ({"K_SERVICE": "anything"}, (("default", "https://a.example.com"), ("b", "https://b.example.com")), None),
        ({"K_SERVICE": "sho"}, URLS, None),
    ],
)
def test_a_process_knows_its_service(environ: dict[str, str], urls: service_urls.ServiceUrls, service: str) -> None:
    """On Cloud Run the service is found by its name or its URL on run.app; if that is not clear, it is not guessed."""
    settings = Settings(engine="cloud-tasks", service_urls=urls)

    assert Deployment.from_environ(environ).named_by(settings).service == service


@pytest.mark.parametrize(
    ("service", "version", "expected"),
    [
        ("default", None, (RUN, RUN)),
        ("background", None, (JOBS, JOBS)),
        ("background", "v2", ("https://v2---shop-jobs-abcdef-ew.a.run.app", JOBS)),
        ("custom", "v2", ("https://v2.example.com", "https://custom.example.com")),
        ("custom", "v3", None),
        ("nowhere", None, None),
    ],
)
def test_a_target_has_a_url(service: str, version: str | None, expected: object) -> None:
    """A version is a tag on run.app, or listed on its own; the audience stays that of the service."""
    urls = (*URLS, ("custom", "https://custom.example.com"), ("v2.custom", "https://v2.example.com"))

    assert service_urls.url_for(urls, service, version) == expected
