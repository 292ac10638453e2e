"""The URLs to include at the root of a site: ``path("", include("deferred_middleware.contrib.django.urls"))``."""

from __future__ import annotations

import re

from django.urls import URLPattern, re_path

from deferred_middleware.config.process import current_settings
from deferred_middleware.contrib.django.views import run_task

app_name = "deferred_middleware"

_settings = current_settings()

urlpatterns: list[URLPattern] = [re_path(f"^{re.escape(_settings.url_prefix.lstrip('/'))}/", run_task, name="task")]
for _url in _settings.unnamed_urls:
    _path = _url.lstrip("/")
    # re_path() searches, so a pattern without an end matches everything that starts so.
    _pattern = f"^{re.escape(_path[:-1])}" if _path.endswith("*") else f"^{re.escape(_path)}$"
    urlpatterns.append(re_path(_pattern, run_task))
