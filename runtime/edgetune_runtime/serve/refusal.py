"""A request that is not answered: its status, and one line that says what is wrong, with how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune_runtime.errors import EdgetuneError, shortened

MAX_MESSAGE = 500
"""Characters of a message: what a client sent may be quoted in it."""

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """What a client is told in place of an answer.

    Examples:
        >>> from edgetune_runtime.serve.refusal import Refusal
        >>> Refusal(404, "no model 'x'", param="model").to_dict()["error"]["type"]
        'not_found_error'

    Args:
        status: of HTTP, 4xx or 5xx.
        message: what is wrong.
        hint: how to mend it.
        param: the field of the request that is wrong, such as "phrases[3]".
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.hint, self.param, self.headers = status, hint, param, dict(headers or {})

    @classmethod
    def of(cls, error: EdgetuneError, param: str | None = None) -> Refusal:
        """The runtime found the request's own content wrong."""
        return cls(400, str(error), hint=error.hint, param=param)

    def to_dict(self) -> dict[str, Any]:
        """The body of the response, in the form of OpenAI's errors with a hint beside."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.status, "hint": self.hint}
        return {"error": {name: _plain(value) if isinstance(value, str) else value for name, value in told.items()}}


def _plain(text: str) -> str:
    """A text on one line, not too long, and without halves of characters, which JSON could not carry as UTF-8."""
    return shortened(" ".join(text.split()), MAX_MESSAGE).encode("utf-8", "backslashreplace").decode()
