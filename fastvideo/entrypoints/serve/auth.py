"""Who may do what."""

from collections.abc import Callable

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fastvideo.entrypoints.serve.keys import ANYBODY, Caller, find_caller
from fastvideo.entrypoints.serve.store import Store

BEARER = HTTPBearer(auto_error=False, description="An API key, as `fastvideo keys add` prints it.")


class Access:
    """Finds the caller of a request."""

    def __init__(self, store: Store, needs_keys: bool) -> None:
        self._store = store
        self._needs_keys = needs_keys

    def caller(self, authorization: str | None) -> Caller:
        """The caller with that header.

        Raises:
            ApiError: 401; a key is needed, and this is none.
        """
        return find_caller(self._store, authorization) if self._needs_keys else ANYBODY

    def needs(self, scope: str) -> Callable[..., Caller]:
        """A dependency: the caller, who has `scope`."""

        def check(
            request: Request,
            credentials: HTTPAuthorizationCredentials | None = Security(BEARER),  # noqa: B008 - FastAPI's way
        ) -> Caller:
            caller = self.caller(request.headers.get("authorization"))
            caller.require(scope)
            return caller

        return check
