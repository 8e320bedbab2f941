"""Room on the store's file system: is there enough, and take it before it is used."""

from __future__ import annotations

import errno
import os

from appliance.errors import NoSpaceError, store_io
from appliance.layout import Paths
from hwprobe.quantity import Bytes

_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def check_room(paths: Paths, size_bytes: int, reserve_bytes: int, *, taken_bytes: int = 0) -> None:
    """Refuse what would not leave the reserve free.

    Args:
        paths: the store, whose root exists.
        size_bytes: what is to be written.
        reserve_bytes: what must be left.
        taken_bytes: room that is taken already and will be used for it.

    Raises:
        NoSpaceError: there is too little room.
        StoreAccessError: nobody can say.
    """
    with store_io("measure free space"):
        status = os.statvfs(paths.root)
    free_bytes = status.f_bavail * status.f_frsize + taken_bytes
    if size_bytes + reserve_bytes > free_bytes:
        raise NoSpaceError(
            f"store: expected {Bytes(size_bytes)} free and {Bytes(reserve_bytes)} in reserve, "
            f"found {Bytes(free_bytes)}",
            hint="remove models with satchel rm MODEL or previous versions with satchel prune "
            "--previous 0, or lower store.reserve",
        )


def take_room(descriptor: int, size_bytes: int) -> None:
    """Take all the room now: writes are faster, and a full disk shows before the copying.

    Raises:
        OSError: as the system says it.
    """
    os.ftruncate(descriptor, 0)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
        os.ftruncate(descriptor, size_bytes)
