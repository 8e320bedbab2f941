"""Where the server listens: sockets of a service manager, or its own."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from appliance.config import Config
from server.access import Keys, refuse_public_without_keys
from server.errors import ServerError
from server.listener import bind, bind_unix, inherited_sockets

_Sockets = tuple[socket.socket, ...]


def listening(config: Config, keys: Keys, environ: Mapping[str, str]) -> tuple[_Sockets, _Sockets]:
    """Main and administrative sockets, the service manager's before our own.

    A Unix socket that comes along with a TCP one is for administration.

    Raises:
        ServerError: others could reach the server and there are no keys, or it cannot listen.
    """
    inherited = inherited_sockets(
        listen_pid=environ.get("LISTEN_PID", ""), listen_fds=environ.get("LISTEN_FDS", "")
    )
    for sock in inherited:
        _refuse_public(sock, keys)
    local = tuple(sock for sock in inherited if sock.family == socket.AF_UNIX)
    main = tuple(sock for sock in inherited if sock.family != socket.AF_UNIX)
    if inherited and not main:
        main, local = local, ()
    if not main:
        refuse_public_without_keys(config.server.host, keys)
        main = (bind(config.server.host, config.server.port),)
        _refuse_public(main[0], keys)  # names may stand for other addresses than they should
    if not local and config.server.admin_socket is not None:
        local = (bind_unix(config.server.admin_socket),)
    return main, local


def _refuse_public(sock: socket.socket, keys: Keys) -> None:
    if not is_loopback(sock):
        try:
            refuse_public_without_keys(str(sock.getsockname()[0]), keys)
        except ServerError:
            sock.close()
            raise


def is_loopback(sock: socket.socket) -> bool:
    """Whether nobody but this machine reaches it."""
    if sock.family == socket.AF_UNIX:
        return True
    host = str(sock.getsockname()[0])
    return host == "::1" or host.startswith("127.")
