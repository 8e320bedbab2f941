"""Addresses of servers, as settings and flags write them. Pure."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

DEFAULT_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}
PORT_MAX = 65535


class HostText(NamedTuple):
    """A server address as ``SATCHEL_HOST`` writes it; ``path`` has no trailing slash."""

    scheme: str
    host: str
    port: int
    path: str


def read_host(text: str) -> HostText:
    """Read ``[http[s]://]host[:port][/path]``; a missing port follows from the scheme.

    Raises:
        ValueError: the port is not one, or nothing is left for a host.
    """
    cleaned = text.strip().strip("\"'").strip()
    scheme, separator, rest = cleaned.partition("://")
    if not separator:
        scheme, rest = "http", cleaned
    if scheme not in _SCHEME_PORTS:
        raise ValueError(f"expected http or https, found {scheme!r}")
    authority, _, path = rest.partition("/")
    host, port_text = _split_port(authority)
    port = _SCHEME_PORTS[scheme] if separator else DEFAULT_PORT
    if port_text:
        if not port_text.isdecimal() or not 0 <= int(port_text) <= PORT_MAX:
            raise ValueError(f"expected a port from 0 to {PORT_MAX}, found {port_text!r}")
        port = int(port_text)
    trimmed = path.strip("/")
    return HostText(scheme, host or "127.0.0.1", port, f"/{trimmed}" if trimmed else "")


def _split_port(authority: str) -> tuple[str, str]:
    """Host and port text of ``host:port``, ``[v6]:port``, or a bare IPv6 address."""
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        return host, rest.removeprefix(":")
    if authority.count(":") > 1:
        return authority, ""
    host, _, port = authority.partition(":")
    return host, port


def listen_is_public(host: str) -> bool:
    """Whether listening on this host is reachable from beyond this machine.

    A name other than ``localhost`` counts as public, because what it resolves to can change.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return True
