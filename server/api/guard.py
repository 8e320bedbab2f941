"""Who may ask: the Host header, the browser's Origin, and API keys; and CORS answers.

Rules:
 * a server that listens on loopback answers only names that cannot be someone else's website
   (DNS rebinding): empty, ``localhost``, this machine's name, ``*.localhost``, ``*.local``,
   ``*.internal``, and loopback, private or unspecified addresses. Otherwise a bare 403;
 * with a list of allowed hosts, these alone besides loopback are answered, wherever it listens;
 * a browser's page from an origin that is not allowed gets 403;
 * where keys are set, everything but liveness needs one, as a bearer token or in ``x-api-key``.
"""

from __future__ import annotations

import fnmatch
import ipaddress
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import urlsplit

import falcon

from server.access import KeyRing, Keys
from server.chat import RequestOptions
from server.errors import UnauthorizedError

Asked = TypeVar("Asked", bound=RequestOptions)

LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
LOCAL_ORIGINS = (
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
    "chrome-extension://*",
    "moz-extension://*",
    "safari-web-extension://*",
)
_LOCAL_ORIGIN_HOSTS = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1"})  # noqa: S104 - names, not listened on
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
"""Answered without a key: probes have none, and the answers say nothing."""

_STAINLESS = (
    "arch", "async", "custom-poll-interval", "helper-method", "lang", "os", "package-version",
    "poll-helper", "retry-count", "runtime", "runtime-version", "timeout",
)  # fmt: skip
ALLOW_HEADERS = ", ".join(
    (
        "Authorization",
        "Content-Type",
        "User-Agent",
        "Accept",
        "X-Requested-With",
        "OpenAI-Beta",
        "x-api-key",
        "anthropic-version",
        "anthropic-beta",
        "anthropic-dangerous-direct-browser-access",
        *(f"x-stainless-{name}" for name in _STAINLESS),
    )
)
ALLOW_METHODS = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
PREFLIGHT_AGE_S = 12 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPolicy:
    """What the guard lets through.

    Attributes:
        loopback: the server listens on loopback only.
        hostname: this machine's name.
        allowed_hosts: names this server may be asked by; empty leaves it to the rule above.
        origins: browser origins allowed besides this machine's; ``*`` matches any text.
        keys: API keys, possibly none.
    """

    loopback: bool
    hostname: str = ""
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: Keys | KeyRing


class Guard:
    """Falcon middleware that judges a request before it is routed."""

    def __init__(self, policy: GuardPolicy) -> None:
        self._policy = policy

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Refuse, answer a preflight, or let pass.

        Raises:
            UnauthorizedError: a key is needed, and this is none.
        """
        if not host_is_allowed(req.get_header("Host") or "", self._policy):
            _end(resp, falcon.HTTP_403)
            return
        origin = req.get_header("Origin")
        if origin and origin != f"{req.scheme}://{req.netloc}":
            if not origin_is_allowed(origin, self._policy.origins):
                _end(resp, falcon.HTTP_403)
                return
            resp.set_header("Access-Control-Allow-Origin", origin)
            resp.append_header("Vary", "Origin")
        if req.method == "OPTIONS":
            resp.set_header("Access-Control-Allow-Methods", ALLOW_METHODS)
            resp.set_header("Access-Control-Allow-Headers", ALLOW_HEADERS)
            resp.set_header("Access-Control-Max-Age", str(PREFLIGHT_AGE_S))
            _end(resp, falcon.HTTP_204)
            return
        tenant = self._policy.keys.tenant(authorization(req))
        if tenant is None and req.path not in OPEN_PATHS:
            raise UnauthorizedError("unauthorized")
        req.context.tenant = tenant or ""


def asked_by(req: falcon.Request, request: Asked) -> Asked:
    """The request with the label of the key it came with."""
    return replace(request, tenant=req.context.tenant)


def authorization(req: falcon.Request) -> str | None:
    """The ``Authorization`` header, or Anthropic's ``x-api-key`` as one."""
    key = req.get_header("X-Api-Key")
    return req.auth or (f"Bearer {key}" if key else None)


def host_is_allowed(header: str, policy: GuardPolicy) -> bool:
    """Whether a request with this Host header is answered."""
    if not policy.loopback and not policy.allowed_hosts:
        return True
    host = _hostname(header)
    if host in policy.allowed_hosts or host in {"", "localhost"}:
        return True
    address = _address(host)
    if policy.allowed_hosts:
        return address is not None and address.is_loopback
    if address is not None:
        return address.is_loopback or address.is_private or address.is_unspecified
    return host == policy.hostname.lower() or host.endswith(LOCAL_SUFFIXES)


def origin_is_allowed(origin: str, extra: tuple[str, ...]) -> bool:
    """Whether a page of this origin may call."""
    try:
        parts = urlsplit(origin)
        local = parts.scheme in {"http", "https"} and parts.hostname in _LOCAL_ORIGIN_HOSTS
    except ValueError:
        return False
    return local or any(fnmatch.fnmatchcase(origin, one) for one in (*LOCAL_ORIGINS, *extra))


def _hostname(header: str) -> str:
    """The name in ``name:port``, ``[v6]:port`` or a bare address, in lower case."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _end(resp: falcon.Response, status: str) -> None:
    resp.status = status
    resp.data = b""
    resp.content_type = "text/plain; charset=utf-8"
    resp.complete = True
