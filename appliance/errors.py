"""The errors of this package, each with the exit code of the command that meets it.

AppError                        1
├── ConfigError                 2  a setting is unknown, of the wrong type, or out of range
├── RequestError                2  what was asked for makes no sense for this bundle or store
├── ModelMissingError           1  no model of that name is installed
├── PullError                   1  no source has that model, or none that may come in
├── PushError                   1  that model cannot be carried out
├── StoreError                 15
│   ├── StoreBusyError         15  another process is writing to the store
│   ├── StoreCorruptError      15  a stored file is not what its name says
│   └── StoreAccessError       15  the store cannot be read or written
├── PolicyError                11
│   ├── SwitchedOffError       11  this site does not allow it
│   ├── NobodyTrustedError     11  no key is trusted here yet
│   ├── KeyRefusedError        11  a key may not be trusted here
│   ├── WrongSiteError         11  the bundle is meant for other sites
│   ├── ExpiredError           11  the bundle is past its date and the site refuses such
│   ├── RootBehindError        11  the bundle asks for a newer trust root than is here
│   ├── RevokedBundleError     11  the trust root revoked the bundle
│   ├── ApprovalMissingError   16  the bundle is staged, and waits for operators' approvals
│   ├── OtherChannelError      11  the name belongs to a model of another channel
│   └── RolledBackError        12
│       ├── OlderBundleError   12  a newer bundle of this channel was accepted before
│       ├── SequenceReuseError 12  the same number was accepted with other content
│       └── SequenceJumpError  12  the number is implausibly far ahead
├── BlobRefusedError           10
│   ├── BlobMismatchError      10  what a client sent has another digest than it said
│   └── BlobTooLargeError      10  what a client sent is over the limit
├── ImportRefusedError         10
│   ├── SeveralBundlesError    10  the medium holds several bundles
│   ├── NotAcceptedError       10  the model fails its signed acceptance checks here
│   ├── LocalObjectMissingError 10 a delta copies from a file that is not here any more
│   └── UnusableModelError     10  a signed file is not a model the engine can be given
├── NoSpaceError               13  the file system of the store is too full
├── ModelTooLargeError         14  no variant of the bundle fits this machine
├── ServerUnreachableError      1  nothing answers at the server's address
└── ServerRefusedError          1  the server answered with an error

What is wrong with a bundle's own bytes or signatures is said by `bundler.format.errors`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from bundler.format import errors as bundle_errors


class AppError(Exception):
    """Root: one lower-case line that names field, expectation and finding; a hint may follow.

    What stands in a bundle or a store may be quoted, but never acts on a terminal or a log:
    characters that do not print become question marks.

    Attributes:
        hint: what the operator can do about it; empty when there is nothing useful to say.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(bundle_errors.printable(message))
        self.hint = bundle_errors.printable(hint)


class ConfigError(AppError):
    """A setting is unknown, of the wrong type, or out of range."""

    exit_code = 2


class RequestError(AppError):
    """What was asked for makes no sense for this bundle or store."""

    exit_code = 2


class ModelMissingError(AppError):
    """No model of that name is installed."""


class PullError(AppError):
    """No source has that model, or none that may come in."""


class PushError(AppError):
    """That model cannot be carried out."""


class StoreError(AppError):
    """The store cannot serve this operation."""

    exit_code = 15


class StoreBusyError(StoreError):
    """Another process is writing to the store."""


class StoreCorruptError(StoreError):
    """A stored file is not what its name says."""


class StoreAccessError(StoreError):
    """The store cannot be read or written."""


class PolicyError(AppError):
    """The trust policy says no."""

    exit_code = 11


class SwitchedOffError(PolicyError):
    """This site does not allow it."""


class NobodyTrustedError(PolicyError):
    """No key is trusted here yet, so nothing can be verified."""


class KeyRefusedError(PolicyError):
    """A key may not be trusted here."""


class WrongSiteError(PolicyError):
    """The bundle is genuine and meant for other sites."""


class ExpiredError(PolicyError):
    """The bundle is past its date, and this site refuses such bundles."""


class RootBehindError(PolicyError):
    """The bundle asks for a newer trust root than this site has seen."""


class RevokedBundleError(PolicyError):
    """The trust root lists the bundle among those that may not come in."""


class OtherChannelError(PolicyError):
    """A model of this name came on another channel."""


class ApprovalMissingError(PolicyError):
    """The bundle is verified and staged, and waits for operators to approve it."""

    exit_code = 16


class RolledBackError(PolicyError):
    """The bundle's sequence number contradicts what this site accepted before."""

    exit_code = 12


class OlderBundleError(RolledBackError):
    """A newer bundle of this channel was accepted before."""


class SequenceReuseError(RolledBackError):
    """The same sequence number was accepted before, with other content."""


class SequenceJumpError(RolledBackError):
    """The sequence number is implausibly far ahead."""


class BlobRefusedError(AppError):
    """What a client sent is not taken; the store is as it was."""

    exit_code = 10


class BlobMismatchError(BlobRefusedError):
    """What a client sent has another digest than it said."""


class BlobTooLargeError(BlobRefusedError):
    """What a client sent is over the limit."""


class ImportRefusedError(AppError):
    """The bundle cannot be imported; the store is as it was."""

    exit_code = 10


class SeveralBundlesError(ImportRefusedError):
    """The medium holds several bundles, and none was named."""


class NotAcceptedError(ImportRefusedError):
    """The model fails its signed acceptance checks on this machine."""


class LocalObjectMissingError(ImportRefusedError):
    """A delta copies from a file that is not in the store, or is damaged there."""


class UnusableModelError(ImportRefusedError):
    """A signed file is not a model the engine can be given."""


class NoSpaceError(AppError):
    """The file system of the store is too full."""

    exit_code = 13


class ModelTooLargeError(AppError):
    """No variant of the bundle fits this machine."""

    exit_code = 14


class ServerUnreachableError(AppError):
    """Nothing answers at the server's address."""


class ServerRefusedError(AppError):
    """The server answered with an error.

    Attributes:
        status: its HTTP status.
    """

    def __init__(self, message: str, *, status: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


_SPACE_HINT = "free some space, or remove models with: satchel rm MODEL"
_ACCESS_HINT = "check the owner and the mount of the store, or name another with --store"


@contextmanager
def store_io(doing: str) -> Iterator[None]:
    """Turn the file system's refusals under the store into this package's errors.

    Args:
        doing: what is being tried, as in ``write the manifest of llama3:8b``.

    Raises:
        NoSpaceError: the file system or the quota is full.
        StoreAccessError: anything else the file system says.
    """
    try:
        yield
    except bundle_errors.NoSpaceError as error:
        raise NoSpaceError(f"cannot {doing}: {error}", hint=_SPACE_HINT) from error
    except bundle_errors.MediumError as error:
        raise StoreAccessError(f"cannot {doing}: {error}", hint=_ACCESS_HINT) from error
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        at = f" at {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError(f"cannot {doing}: {reason}{at}", hint=_SPACE_HINT) from error
        raise StoreAccessError(f"cannot {doing}: {reason}{at}", hint=_ACCESS_HINT) from error
