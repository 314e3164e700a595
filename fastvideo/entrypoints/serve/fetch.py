"""Files behind URLs that clients give: fetched from public addresses alone, with limits on bytes and time.

A name is resolved once, all its addresses are checked, and the connection goes to one of those that were checked, so a
name that changes in between changes nothing. Each redirect is checked alike.
"""

import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from fastvideo.entrypoints.serve.errors import ApiError

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 3
MOST_URL = 2048
PORTS = {"http": 80, "https": 443}
HOLDERS = tuple(map(ipaddress.ip_network, ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32",
                                           "2002::/16")))  # fmt: skip
"""IPv6 addresses that stand for an IPv4 one, which may be private (RFC 4291, 6052, 8215, 4380, 3056)."""


def is_public(address: str) -> bool:
    """Whether an address is of the open Internet: not private, of this machine, of the local link, or for many."""
    ip = ipaddress.ip_address(address.split("%")[0])
    special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved
    return ip.is_global and not special and not any(ip in network for network in HOLDERS)


def fetch(url: str, name: str, *, most_bytes: int, seconds: float) -> bytes:
    """What is behind an http(s) URL.

    Args:
        url: as a client gave it.
        name: the field of the request that it is of.
        most_bytes: of the file.
        seconds: for all of it, redirects included.

    Raises:
        ApiError: 400, with the field. Why a host is not reached is not said, so that nobody learns of others there.
    """
    until = time.monotonic() + seconds
    try:
        with httpcore.ConnectionPool(network_backend=_Checked(until), max_connections=1) as pool:
            for _ in range(MOST_REDIRECTS + 1):
                answer = _get(pool, url, name, until, most_bytes)
                if isinstance(answer, bytes):
                    return answer
                url = answer
    except (httpcore.TimeoutException, _TooLongError):
        raise _bad(name, f"its URL takes more than {seconds:g} s; send the file itself") from None
    except (OSError, ValueError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol):
        raise _bad(name, "its URL cannot be fetched from a public address; send the file itself") from None
    raise _bad(name, f"its URL leads to more than {MOST_REDIRECTS} others; send the last one")


def _get(pool: httpcore.ConnectionPool, url: str, name: str, until: float, most_bytes: int) -> bytes | str:
    """The file, or the URL that is to be asked instead."""
    headers: dict[bytes | str, bytes | str] = {
        "Host": urlsplit(url).netloc.rpartition("@")[2], "User-Agent": "fastvideo", "Accept": "image/*, video/*",
        "Accept-Encoding": "identity",
    }  # fmt: skip
    left = max(0.001, until - time.monotonic())
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), left)
    with pool.stream("GET", target(url, name), headers=headers, extensions={"timeout": timeouts}) as answer:
        found = {key.lower(): value.decode("latin-1") for key, value in answer.headers}
        if answer.status in REDIRECTS and b"location" in found:
            return urljoin(url, found[b"location"])
        if answer.status != 200:
            raise _bad(name, f"its URL answers with {answer.status}; send the file itself")
        length, data = found.get(b"content-length", "0"), bytearray()
        if length.isdigit() and int(length) > most_bytes:
            raise _too_large(name, most_bytes)
        for piece in answer.iter_stream():
            data += piece
            if len(data) > most_bytes:
                raise _too_large(name, most_bytes)
        return bytes(data)


def target(url: str, name: str) -> httpcore.URL:
    """`url`, if it may be asked.

    Raises:
        ApiError: 400; it is none of http(s), has a password, or no host.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").encode("idna")
    except (ValueError, UnicodeError):
        raise _bad(name, "its URL is not well formed") from None
    scheme = parts.scheme.lower()
    if scheme not in PORTS:
        raise _bad(name, "its URL must be http(s) or data:")
    if not host or parts.username is not None or len(url) > MOST_URL or not url.isascii() or not url.isprintable():
        raise _bad(name, f"its URL must have a host, no password, and at most {MOST_URL} plain characters")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return httpcore.URL(scheme=scheme, host=host, port=port or PORTS[scheme], target=path.replace(" ", "%20"))


class _TooLongError(Exception):
    """The time is over."""


class _Checked(httpcore.NetworkBackend):
    """Connects to public addresses, to the one that was checked."""

    def __init__(self, until: float) -> None:
        self._until = until
        self._real = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses or not all(map(is_public, addresses)):
            raise OSError("not a public address")
        failure: Exception = OSError("no address")
        for address in addresses:
            try:
                return _Timed(self._real.connect_tcp(address, port, _left(self._until), local_address), self._until)
            except httpcore.ConnectError as error:
                failure = error
        raise failure

    def sleep(self, seconds: float) -> None:
        raise _TooLongError


class _Timed(httpcore.NetworkStream):
    """A connection that ends when the time is over, however slowly the other side talks."""

    def __init__(self, real: httpcore.NetworkStream, until: float) -> None:
        self._real = real
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._real.read(max_bytes, _left(self._until))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._real.write(buffer, _left(self._until))

    def close(self) -> None:
        self._real.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None,
                  timeout: float | None = None) -> httpcore.NetworkStream:  # fmt: skip
        return _Timed(self._real.start_tls(ssl_context, server_hostname, _left(self._until)), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._real.get_extra_info(info)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise _TooLongError
    return left


def _too_large(name: str, most_bytes: int) -> ApiError:
    return _bad(name, f"the file behind its URL is larger than {most_bytes / 2**20:g} MB")


def _bad(name: str, rule: str) -> ApiError:
    return ApiError(400, f"{name}: {rule}", param=name, code="invalid_value")
