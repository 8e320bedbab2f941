"""The errors of bundles, each with the exit code of the command that meets it.

BundleError                    1
├── FormatError               10  something is not what the format says
│   ├── DigestFormatError     10  a text is not a digest
│   ├── ModelNameError        10  a text is not a model name
│   ├── ModelfileError        10  a Modelfile is malformed, at a line
│   ├── JsonError             10  not the strict JSON that bundles use
│   ├── EnvelopeError         10  not a DSSE envelope
│   ├── FieldError            10  a field is not what is expected there
│   │   ├── ManifestError     10  … of the signed statement
│   │   ├── RootError         10  … of a trust root
│   │   ├── ConsentError      10  … of an approval, or of a permit
│   │   ├── UpdateError       10  … of a trust update
│   │   ├── ChunkIndexError   10  … of a chunk index
│   │   ├── InventoryError    10  … of a site's inventory
│   │   ├── RepairRequestError 10  … of a repair request
│   │   ├── ReceiptError      10  … of a receipt
│   │   └── AcceptanceError   10  … of acceptance checks
│   ├── PaperError            10  scanned or typed texts are not those that were printed
│   ├── UnsupportedError      10  well formed, but needs a newer release
│   ├── DamagedError          10  stored bytes are not the signed ones
│   ├── LocalObjectError      10  a file the bundle copies from is not what it should be
│   ├── LayoutError           10  the medium holds no bundle, or an unfinished one
│   └── MissingBlobError      10  a signed file is not on the medium
│       └── MissingVolumeError 10  … because another volume of the bundle holds it
├── TrustError                11  the signatures are not enough
│   ├── UnsignedError         11  there is no signature
│   ├── UntrustedKeyError     11  no signature is by a trusted key
│   ├── BadSignatureError     11  a signature that names a trusted key does not verify
│   ├── ThresholdError        11  too few trusted keys signed
│   ├── OtherConsentError     11  a signed consent is for something else, or was used
│   ├── ChannelRefusedError   11  nobody may sign for that channel, or not for that model
│   └── RootChainError        11  a trust root does not follow the one before it
├── KeyFileError               1  a key file cannot be used
├── MediumError                1  the medium cannot be read or written
└── NoSpaceError              13  there is no room
"""

from __future__ import annotations


class BundleError(Exception):
    """Root: one lower-case line, a hint where one helps, and the exit code of a command.

    What stands on a medium may be quoted in a message, but never acts on a terminal or a log:
    characters that do not print become question marks.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(printable(message))
        self.hint = printable(hint)


class FormatError(BundleError):
    """Something is not what the format says."""

    exit_code = 10


class DigestFormatError(FormatError):
    """A text is not ``sha256:`` and 64 lower-case hexadecimal digits."""


class ModelNameError(FormatError):
    """A text is not a model name."""


class ModelfileError(FormatError):
    """A Modelfile is malformed.

    Attributes:
        line: where, counted from 1; 0 when the whole file is meant.
    """

    def __init__(self, message: str, *, line: int = 0, hint: str = "") -> None:
        super().__init__(f"(line {line}): {message}" if line else message, hint=hint)
        self.line = line


class JsonError(FormatError):
    """Bytes are not the strict JSON that bundles use."""


class EnvelopeError(FormatError):
    """Bytes are not a DSSE envelope of the expected type."""


class FieldError(FormatError):
    """A field is not what is expected there.

    Attributes:
        at: path of the field, such as ``predicate.blobs[2].size``.
        expected: what the format asks for.
        found: what stands there, shortened.
    """

    what = "malformed document"

    def __init__(self, *, at: str, expected: str, found: str, hint: str = "") -> None:
        super().__init__(f"{self.what}: {at}: expected {expected}, found {found}", hint=hint)
        self.at = at
        self.expected = expected
        self.found = found


class ManifestError(FieldError):
    """A field of the signed statement is wrong."""

    what = "malformed statement"


class RootError(FieldError):
    """A field of a trust root is wrong."""

    what = "malformed trust root"


class RepairRequestError(FieldError):
    """A field of a repair request is wrong."""

    what = "malformed repair request"


class InventoryError(FieldError):
    """A field of a site's inventory is wrong."""

    what = "malformed inventory"


class ConsentError(FieldError):
    """A field of an approval or of a permit is wrong."""

    what = "malformed consent"


class UpdateError(FieldError):
    """A field of a trust update is wrong."""

    what = "malformed trust update"


class PaperError(FormatError):
    """Texts that were scanned or typed do not belong together, or one of them is wrong."""


class ReceiptError(FieldError):
    """A field of a receipt is wrong."""

    what = "malformed receipt"


class AcceptanceError(FieldError):
    """A field of acceptance checks is wrong, or a model fails its own."""

    what = "acceptance checks"


class UnsupportedError(FormatError):
    """The bundle is well formed but needs a newer release."""


class ChunkIndexError(FieldError):
    """A chunk index is malformed, or unlike the statement that names it."""

    what = "malformed chunk index"


class DamagedError(FormatError):
    """Bytes on the medium are not the signed ones."""


class LocalObjectError(FormatError):
    """A file that the bundle copies from is missing at the target, or is another one."""


class LayoutError(FormatError):
    """The medium holds no bundle, an unfinished one, or a file of the wrong kind."""


class MissingBlobError(FormatError):
    """A file that the statement names is not on the medium."""


class MissingVolumeError(MissingBlobError):
    """Another volume of the bundle is still to come."""


class TrustError(BundleError):
    """The signatures are not enough."""

    exit_code = 11


class UnsignedError(TrustError):
    """The envelope carries no signature."""


class UntrustedKeyError(TrustError):
    """No signature is by a trusted key."""


class BadSignatureError(TrustError):
    """A signature that names a trusted key does not verify."""


class ThresholdError(TrustError):
    """Too few trusted keys signed, or the threshold itself makes no sense."""


class ChannelRefusedError(TrustError):
    """Nobody may sign for the bundle's channel, or the channel may not set that model."""


class OtherConsentError(TrustError):
    """An approval or a permit is for something else, or it was used before."""


class RootChainError(TrustError):
    """A trust root does not follow the one before it."""


class KeyFileError(BundleError):
    """A key file cannot be read, written or decrypted."""


class MediumError(BundleError):
    """The medium or a file on it cannot be read or written."""


class NoSpaceError(BundleError):
    """There is no room for what is to be written."""

    exit_code = 13


def printable(text: str) -> str:
    """One line in which whatever could steer a terminal or forge a log line is a question mark."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
