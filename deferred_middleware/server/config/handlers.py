"""The ``handlers`` of ``app.yaml`` that are more than "the app answers": static files and logins.

Their fields are described at
https://cloud.google.com/appengine/docs/standard/reference/app-yaml?tab=python#handlers_element.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HandlerRule:
    """One handler: it is for the paths that ``pattern`` matches as a whole.

    If ``file`` is not None, the handler is static: ``file`` is the template of a path below ``root``, in which the
    groups of the match are put, and the path has to match ``upload``. ``login`` and ``auth_fail_action`` are those of
    the file, by default ``optional`` and ``redirect``.
    """

    pattern: str
    root: str = ""
    file: str | None = None
    upload: str | None = None
    mime_type: str | None = None
    http_headers: Mapping[str, str] = field(default_factory=dict)
    expiration_seconds: int | None = None
    login: str = "optional"
    auth_fail_action: str = "redirect"


def rules_of(info: Any, folder: Path) -> tuple[HandlerRule, ...]:
    """Return the handlers of a parsed file in ``folder``, in their order; none if the app answers everything."""
    default = info.default_expiration
    rules = [_rule(handler, folder, default) for handler in info.handlers or ()]
    used = [rule for rule in rules if rule.file is not None or rule.login != "optional"]
    return tuple(rules) if used else ()


def _rule(handler: Any, folder: Path, default_expiration: str | None) -> HandlerRule:
    # The app processes, which may do without the SDK, read the rules too.
    from google.appengine.api import appinfo

    url = str(handler.url)
    expiration = handler.expiration or default_expiration
    pattern, root, file, upload = url, folder, None, None
    if handler.static_dir:
        # All that follows the URL, which has no groups, is a path in the folder.
        pattern, root, file = f"(?:{url.rstrip('/')})/(.*)", folder / str(handler.static_dir), r"\1"
    elif handler.static_files:
        file, upload = str(handler.static_files), handler.upload
    return HandlerRule(
        pattern=pattern,
        root=str(root),
        file=file,
        upload=upload,
        mime_type=handler.mime_type,
        http_headers=dict(handler.http_headers or {}),
        expiration_seconds=appinfo.ParseExpiration(expiration) if expiration else None,
        login=str(handler.login or "optional"),
        auth_fail_action=str(handler.auth_fail_action or "redirect"),
    )


def problem_of_rule(rule: HandlerRule) -> str | None:
    """Return what is wrong with the regular expressions of a rule; None if nothing is."""
    try:
        pattern = re.compile(rule.pattern)
        re.compile(rule.upload or "")
    except re.error as error:
        return f"url {rule.pattern} can't be used: {error}"
    try:
        pattern.sub(rule.file or "", "")  # this reads the template, whether or not the pattern matches
    except (re.error, IndexError) as error:
        return f"static_files {rule.file} can't be used with url {rule.pattern}: {error}"
    return None
