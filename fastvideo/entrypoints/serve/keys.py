"""API keys: made on the command line, kept as hashes, checked with each request."""

import hashlib
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.records import api_keys
from fastvideo.entrypoints.serve.store import Store

SCOPES = {
    "read": "see jobs and files of this key",
    "write": "make, cancel and delete jobs of this key",
    "priority": "ask for a priority above 0",
    "metrics": "read /metrics",
    "admin": "everything, with the jobs of all keys",
}
DEFAULT_SCOPES = ("read", "write")


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    owner: str
    scopes: frozenset[str]
    max_jobs: int | None = None

    def may(self, scope: str) -> bool:
        """Whether a scope is among the caller's."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def sees(self) -> str | None:
        """Whose jobs the caller sees; None: everybody's."""
        return None if "admin" in self.scopes else self.owner

    def require(self, scope: str) -> None:
        """Raise a 403 unless `scope` is among the caller's."""
        if not self.may(scope):
            raise ApiError(403, f"this API key lacks the scope {scope!r}", code="insufficient_scope")


ANYBODY = Caller("local", frozenset(SCOPES))
"""Whoever reaches a server without keys: programs of this machine."""


def hashed(key: str) -> str:
    """What the database holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(store: Store, name: str, scopes: tuple[str, ...], max_jobs: int | None = None) -> tuple[str, str]:
    """A new key: its id, and the key itself, which is nowhere else."""
    key, key_id = f"fv-{secrets.token_urlsafe(32)}", f"key_{secrets.token_hex(8)}"
    values = {"id": key_id, "name": name, "hash": hashed(key), "scopes": json.dumps(sorted(scopes)),
              "max_jobs": max_jobs, "created_at": time.time(), "revoked_at": None}  # fmt: skip
    with store.writing() as connection:
        connection.execute(api_keys.insert(), values)
    return key_id, key


def list_keys(store: Store) -> list[dict[str, Any]]:
    """All keys, without what the client holds."""
    with store.engine.connect() as connection:
        rows = connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at)).mappings()
        return [dict(row) | {"scopes": json.loads(row["scopes"])} for row in rows]


def revoke_key(store: Store, key_id: str) -> bool:
    """Refuse a key from now on. Whether there was one."""
    with store.writing() as connection:
        live = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
        return connection.execute(api_keys.update().where(live).values(revoked_at=time.time())).rowcount == 1


def find_caller(store: Store, authorization: str | None) -> Caller:
    """The caller with that `Authorization` header.

    Raises:
        ApiError: 401; it names no key that is valid.
    """
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise ApiError(401, "no API key: send it as 'Authorization: Bearer fv-...'", code="missing_api_key",
                       headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
    query = sa.select(api_keys).where(api_keys.c.hash == hashed(key.strip()), api_keys.c.revoked_at.is_(None))
    caller = _caller(store, query)
    if caller is None:
        raise ApiError(401, "this API key is not valid", code="invalid_api_key",
                       headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
    return caller


def caller_of(store: Store, key_id: str) -> Caller | None:
    """Whoever holds the key of that id; None when it is not valid."""
    return _caller(store, sa.select(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)))


def _caller(store: Store, query: sa.Select[Any]) -> Caller | None:
    with store.engine.connect() as connection:
        row = connection.execute(query).mappings().first()
    return None if row is None else Caller(row["id"], frozenset(json.loads(row["scopes"])), row["max_jobs"])
