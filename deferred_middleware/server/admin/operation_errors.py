"""Errors of what people ask for, with a status, a code for programs, and a sentence for people."""

from __future__ import annotations

from http import HTTPStatus


class OperationError(Exception):
    """Something that can't be done. ``code`` is for programs, ``message`` for people; ``known`` is what there is."""

    def __init__(self, status: HTTPStatus, code: str, message: str, *, known: tuple[str, ...] = ()) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.known = known
        super().__init__(message)


def bad(message: str) -> OperationError:
    """Return the error for what can't be understood."""
    return OperationError(HTTPStatus.BAD_REQUEST, "bad-request", message)


def conflict(code: str, message: str) -> OperationError:
    """Return the error for what the state of a task doesn't allow."""
    return OperationError(HTTPStatus.CONFLICT, code, message)
