"""The device key: what this appliance signs its receipts and inventories with.

It is made here, once, and never leaves: its public half is read aloud or carried to the connected
side. It vouches for what this machine says about itself, and for nothing that comes in.
"""

from __future__ import annotations

from appliance.errors import RequestError, StoreCorruptError, store_io
from appliance.journal import Journal
from appliance.layout import Paths
from appliance.store import Store
from bundler.format import fsio
from bundler.format.errors import KeyFileError, MissingBlobError
from bundler.format.keys import PublicKey, SigningKey

_MAX_KEY_BYTES = 64 << 10


def device_key(paths: Paths) -> SigningKey | None:
    """The device key, or `None` where none was made.

    Raises:
        StoreAccessError: it is not for this user to read.
        StoreCorruptError: the file holds no key.
    """
    try:
        with store_io("read the device key"):
            data = fsio.read_bounded(paths.device_key, max_bytes=_MAX_KEY_BYTES)
    except MissingBlobError:
        return None
    try:
        return SigningKey.load(data, None)
    except KeyFileError as error:
        raise StoreCorruptError(
            f"device key: {error}",
            hint="restore it from a backup; or remove the file, and make and enrol another key",
        ) from error


def make_device_key(store: Store) -> PublicKey:
    """Make the device key.

    Raises:
        RequestError: there is one.
        StoreError: it cannot be written, or another process is writing.
        NoSpaceError: there is no room.
    """
    with store.writing():
        key = SigningKey.generate()
        with store_io("write the device key"):
            try:
                fsio.create_new(store.paths.device_key, key.dump(None), mode=0o600)
            except FileExistsError as error:
                raise RequestError(
                    "device key: expected none, found one",
                    hint="one machine signs with one key; show it with: satchel device",
                ) from error
        Journal(store.paths.journal).record("device", key=key.public_key.key_id)
        return key.public_key
