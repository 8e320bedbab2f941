"""Read and fill an OCI registry: manifests and blobs, by the OCI distribution specification.

Rules:
 * nothing is believed: every blob is hashed, and a manifest named by digest too;
 * what was downloaded of a blob is kept, and the next try goes on from there;
 * a password goes only to the registry itself, or over TLS to the server it names for tokens;
 * a redirect to another host takes no authorization with it;
 * with an authority of the site's own, no other one is believed.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from bundler.errors import PackError, SourceDamagedError
from bundler.format.digest import Digest
from bundler.format.fsio import raise_io
from bundler.progress import Advance
from bundler.source.image import INDEX_TYPES, MANIFEST_TYPES
from bundler.source.reference import RegistryReference

_TIMEOUT_S: Final = 60
"""Of one read. Why: a registry behind a proxy may fetch from elsewhere first."""
_PAUSES_S: Final = (0.2, 1.0, 3.0, 8.0)
_READ_BYTES: Final = 1 << 20
_MAX_MANIFEST_BYTES: Final = 4 << 20
"""Source: OCI distribution specification, the size registries must accept."""
_MAX_TOKEN_BYTES: Final = 1 << 20
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')
_LOOPBACK: Final = re.compile(r"(?:localhost|127(?:\.\d+){3}|\[::1\])(?::\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A user of a registry."""

    user: str
    password: str

    def header(self) -> str:
        """The value of ``Authorization``."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def read_logins(data: bytes) -> dict[str, Login]:
    """Logins by host of a ``config.json`` of Docker or ``auth.json`` of Podman.

    Entries whose secret is kept by a helper program are passed over: no program is started.

    Raises:
        PackError: it is none.
    """
    try:
        entries = json.loads(data).get("auths") or {}
        found = {}
        for host, entry in entries.items():
            if text := entry.get("auth"):
                user, _, password = base64.b64decode(text, validate=True).decode().partition(":")
                name = urllib.parse.urlsplit(host if "//" in host else f"//{host}").netloc
                found[name] = Login(user=user, password=password)
    except (ValueError, AttributeError) as error:
        raise PackError("registry logins: expected a configuration of Docker's form") from error
    return found


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and leaves the authorization behind when the host changes."""

    def redirect_request(  # noqa: PLR0917 - the library's signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise PackError(f"registry: a redirect to {newurl[:80]!r} is not followed")
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed is not None:
            before, after = (urllib.parse.urlsplit(url) for url in (req.full_url, newurl))
            if (before.scheme, before.netloc) != (after.scheme, after.netloc):
                followed.remove_header("Authorization")
        return followed


class Registry:
    """One registry, and the permission it gave."""

    def __init__(
        self,
        host: str,
        *,
        plain_http: bool,
        login: Login | None,
        pauses_s: Sequence[float] = _PAUSES_S,
        authority: Path | None = None,
        secure: bool = False,
    ) -> None:
        """Nothing is sent yet.

        Args:
            host: with a port where it is not the usual one.
            plain_http: without TLS; loopback has none unless ``secure``.
            login: for registries that want one.
            pauses_s: before each further try that brought nothing.
            authority: certificates in PEM; the only ones that may vouch for the host.
            secure: with TLS on loopback, too; so it is with an ``authority``.

        Raises:
            PackError: ``authority`` holds no certificates.
        """
        usual = secure or authority is not None or not _LOOPBACK.fullmatch(host)
        scheme = "https" if usual and not plain_http else "http"
        name = "registry-1.docker.io" if host == "docker.io" else host
        self._base = f"{scheme}://{name}"
        self._login = login
        self._pauses_s = tuple(pauses_s)
        self._authorization = ""
        own = () if authority is None else (_only(authority),)
        self._opener = urllib.request.build_opener(_Redirects(), *own)

    def manifest(self, reference: RegistryReference) -> bytes:
        """The manifest a reference names; one of an index with a single entry is followed.

        Raises:
            PackError: there is none, or the registry does not answer.
            SourceDamagedError: it is not the one that was named.
        """
        data, media = self._manifest(reference.repository, reference.version)
        if reference.digest is not None:
            _check(data, reference.digest)
        if media not in INDEX_TYPES:
            return data
        try:
            entries = [Digest.parse(one["digest"]) for one in json.loads(data)["manifests"]]
        except (ValueError, KeyError, TypeError) as error:
            raise SourceDamagedError(f"{reference}: not an index of manifests") from error
        if len(entries) != 1:
            listed = ", ".join(str(one) for one in entries[:4])
            raise PackError(
                f"{reference}: expected one manifest, found {len(entries)}",
                hint=f"name one of them: oci:{reference.host}/{reference.repository}@DIGEST; "
                f"there are {listed}",
            )
        data, _ = self._manifest(reference.repository, str(entries[0]))
        _check(data, entries[0])
        return data

    def _manifest(self, repository: str, version: str) -> tuple[bytes, str]:
        url = f"{self._base}/v2/{repository}/manifests/{version}"
        accept = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
        for pause_s in (*self._pauses_s, None):
            try:
                with self._get(url, {"Accept": accept}) as response:
                    data = response.read(_MAX_MANIFEST_BYTES + 1)
                    media = response.headers.get_content_type()
            except (OSError, http.client.HTTPException) as error:
                if pause_s is None or isinstance(error, urllib.error.HTTPError):
                    raise _unreachable(url, error) from error
                time.sleep(pause_s)
            else:
                if len(data) > _MAX_MANIFEST_BYTES:
                    raise PackError(f"{url}: expected at most {_MAX_MANIFEST_BYTES} bytes")
                return data, media
        raise AssertionError

    def blob(
        self, repository: str, digest: Digest, size_bytes: int, cache: Path, advance: Advance
    ) -> Path:
        """Bring a blob into the cache, or check the one that is there; its path.

        Args:
            repository: where it is.
            digest: its name, and what its bytes are checked against.
            size_bytes: how many there are.
            cache: directory of ``sha256-<hex>`` files and unfinished ones.
            advance: told of bytes brought or checked.

        Raises:
            SourceDamagedError: the registry gives other bytes than the manifest names.
            PackError: it does not answer, or gives up too often.
            NoSpaceError: the cache is full.
        """
        path = cache / f"sha256-{digest.hex}"
        partial = path.with_suffix(".partial")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            if path.exists():
                path.replace(partial)  # checked again, like what an earlier try left
            with partial.open("a+b") as file:
                hasher = _hash_from_start(file, size_bytes, advance)
                url = f"{self._base}/v2/{repository}/blobs/{digest}"
                self._fill(url, file, size_bytes, hasher, advance)
            if hasher.hexdigest() != digest.hex:
                partial.unlink()
                raise SourceDamagedError(
                    f"{digest}: the registry gives other bytes than its manifest names",
                    hint="try again; if it stays so, the registry's copy is damaged",
                )
            partial.replace(path)
        except OSError as error:
            raise_io(error, partial)
        return path

    def holds(self, repository: str, digest: Digest) -> bool:
        """Whether a blob is there already.

        Raises:
            PackError: the registry does not answer, or does not say.
        """
        url = f"{self._base}/v2/{repository}/blobs/{digest}"
        try:
            self._ask(url, {}, method="HEAD").close()
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.NOT_FOUND:
                raise _unreachable(url, error) from error
            error.close()
            return False
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(url, error) from error
        return True

    def put_blob(self, repository: str, digest: Digest, size_bytes: int, data: IO[bytes]) -> None:
        """Send a blob in one piece.

        Raises:
            PackError: the registry does not take it.
        """
        url = f"{self._base}/v2/{repository}/blobs/uploads/"
        try:
            with self._ask(url, {"Content-Length": "0"}, method="POST", data=b"") as response:
                place = urllib.parse.urljoin(url, response.headers.get("Location", ""))
            if urllib.parse.urlsplit(place)[:2] != urllib.parse.urlsplit(url)[:2]:
                raise PackError(f"{url}: an upload to {place[:80]!r} is not followed")
            query = urllib.parse.urlencode({"digest": str(digest)})
            url = f"{place}{'&' if urllib.parse.urlsplit(place).query else '?'}{query}"
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(size_bytes),
            }
            self._ask(url, headers, method="PUT", data=data).close()
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(url, error) from error

    def put_manifest(self, repository: str, version: str, data: bytes, media_type: str) -> None:
        """Name what was sent.

        Raises:
            PackError: the registry does not take it.
        """
        url = f"{self._base}/v2/{repository}/manifests/{version}"
        try:
            self._ask(url, {"Content-Type": media_type}, method="PUT", data=data).close()
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(url, error) from error

    def _fill(
        self, url: str, file: IO[bytes], size_bytes: int, hasher: Any, advance: Advance
    ) -> None:
        """Append what lacks; several tries as long as each brings something."""
        tries = 0
        while (have := file.tell()) < size_bytes:
            try:
                with self._get(url, {"Range": f"bytes={have}-"} if have else {}) as response:
                    _skip_what_is_there(response, have)
                    while left := size_bytes - file.tell():
                        data = response.read(min(left, _READ_BYTES))
                        if not data:
                            break
                        file.write(data)
                        hasher.update(data)
                        advance(len(data))
                reason: Exception = EOFError("the connection ended early")
            except urllib.error.HTTPError as error:
                if error.code < 500:  # noqa: PLR2004 - only the server's own troubles pass
                    raise _unreachable(url, error) from error
                error.close()
                reason = error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                reason = error
            except http.client.HTTPException as error:
                reason = error
            file.flush()
            tries = 0 if file.tell() > have else tries + 1
            if file.tell() < size_bytes:
                if tries >= len(self._pauses_s):
                    raise _unreachable(url, reason)
                time.sleep(self._pauses_s[tries])

    def _get(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        return self._ask(url, headers)

    def _ask(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        data: bytes | IO[bytes] | None = None,
    ) -> http.client.HTTPResponse:
        """One request, with the permission asked for when the registry wants one."""
        try:
            return self._open(url, {**headers, **self._permission()}, method, data)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.UNAUTHORIZED:
                raise
            challenge = error.headers.get("WWW-Authenticate", "")
            error.close()
        self._authorization = self._answer(challenge, url)
        if data is not None and not isinstance(data, bytes):
            data.seek(0)
        return self._open(url, {**headers, **self._permission()}, method, data)

    def _permission(self) -> dict[str, str]:
        return {"Authorization": self._authorization} if self._authorization else {}

    def _open(
        self,
        url: str,
        headers: Mapping[str, str],
        method: str = "GET",
        data: bytes | IO[bytes] | None = None,
    ) -> http.client.HTTPResponse:
        request = urllib.request.Request(  # noqa: S310 - http(s) above
            url, data, dict(headers), method=method
        )
        request.add_header("User-Agent", "satchel-bundle")
        response: http.client.HTTPResponse = self._opener.open(request, timeout=_TIMEOUT_S)
        return response

    def _answer(self, challenge: str, url: str) -> str:
        """The value of ``Authorization`` that a challenge asks for."""
        kind, _, rest = challenge.partition(" ")
        parameters = dict(_PARAMETER.findall(rest))
        host = urllib.parse.urlsplit(self._base).netloc
        if kind.lower() == "basic":
            if self._login is None:
                raise PackError(
                    f"{host}: the registry wants a login",
                    hint=f"log in once with docker or podman: docker login {host}",
                )
            return self._login.header()
        if kind.lower() != "bearer" or "realm" not in parameters:
            raise PackError(
                f"{url}: expected a challenge of the registry, found {challenge[:80]!r}"
            )
        realm = parameters.pop("realm")
        asked = {name: parameters[name] for name in ("service", "scope") if name in parameters}
        place = urllib.parse.urlsplit(realm)
        headers = {}
        if self._login is not None:
            if place.scheme != "https" and place.netloc != host:
                raise PackError(f"{host}: the password is not sent in clear to {place.netloc}")
            headers["Authorization"] = self._login.header()
        if place.scheme not in ("http", "https"):
            raise PackError(f"{host}: expected tokens over http, found {realm[:80]!r}")
        query = urllib.parse.urlencode(asked)
        try:
            with self._open(f"{realm}{'&' if place.query else '?'}{query}", headers) as response:
                value = json.loads(response.read(_MAX_TOKEN_BYTES))
            return "Bearer " + str(value.get("token") or value["access_token"])
        except (OSError, ValueError, KeyError, AttributeError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise PackError(
                f"{host}: no token from {place.netloc}: {error}",
                hint=f"log in once with docker or podman: docker login {host}",
            ) from error


def _only(authority: Path) -> urllib.request.HTTPSHandler:
    """TLS that believes these certificates and no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise PackError(
            f"{authority}: expected certificates in PEM, found none",
            hint="it is the registry's certificate, or that of the authority that signed it",
        ) from error
    return urllib.request.HTTPSHandler(context=context)


def _check(data: bytes, digest: Digest) -> None:
    if Digest.of(data) != digest:
        raise SourceDamagedError(f"{digest}: the registry gives another manifest")


def _hash_from_start(file: IO[bytes], size_bytes: int, advance: Advance) -> Any:
    """Hash what is there already; a file that is too long is begun again."""
    hasher = hashlib.sha256()
    file.seek(0, 2)
    if file.tell() > size_bytes:
        file.truncate(0)
    file.seek(0)
    while data := file.read(_READ_BYTES):
        hasher.update(data)
        advance(len(data))
    return hasher


def _skip_what_is_there(response: http.client.HTTPResponse, have: int) -> None:
    """Come to where a range was asked for, also when the server sends everything."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        started = str(response.headers.get("Content-Range", "")).partition("-")[0]
        if started != f"bytes {have}":
            raise ConnectionError(f"expected bytes from {have}, found {started[:40]!r}")
        return
    left = have
    while left and (data := response.read(min(left, _READ_BYTES))):
        left -= len(data)


def _unreachable(url: str, error: Exception) -> PackError:
    host = urllib.parse.urlsplit(url).netloc
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        what = f"{error.code} {error.reason}"
        hint = {
            401: f"log in once with docker or podman: docker login {host}",
            403: "this login may not read the repository",
            404: "look at the repository's name and tag",
        }.get(error.code, "")
        return PackError(f"{url}: {what}", hint=hint)
    reason = getattr(error, "reason", error)
    return PackError(
        f"{url}: {str(reason).lower()}",
        hint="what was downloaded is kept; run the same command again to go on"
        if "/blobs/" in url
        else f"is {host} reachable, and does it speak TLS? see --plain-http",
    )
