"""Errors as the API of OpenAI shows them."""

from typing import Any

from starlette.responses import JSONResponse

TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         405: "invalid_request_error", 409: "conflict_error", 413: "invalid_request_error",
         429: "rate_limit_error"}  # fmt: skip
"""`type` of an error, by its status; others are the server's."""


class ApiError(Exception):
    """What a client did wrong, or the server cannot do."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`param` is the field of the request that is wrong, and `code` a word for programs."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response. A client must not try again what can only fail again."""
        headers = dict(self.headers)
        if self.status not in (429, 503):
            headers.setdefault("x-should-retry", "false")
        return JSONResponse(self.body(), self.status, headers)
