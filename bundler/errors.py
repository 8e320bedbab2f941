"""The errors of packing; what is wrong with a bundle itself is said by `bundler.format.errors`.

BundleError              1
├── PackError            1  what was asked for cannot be packed
├── SourceDamagedError   1  files of the source are missing, cut off or changed
├── ForeignLayoutError   1  a GGUF file in a layout that llama.cpp does not load
├── BundleExistsError    1  another bundle has this channel and sequence number
├── SignaturesError      1  signatures that were made elsewhere are not of this bundle
├── ReceiptRefusedError 11  a site's receipts are not signed by its device, or have gaps
└── QuantizeError        1  the engine's child process crashed or refused
"""

from __future__ import annotations

from bundler.format.errors import BundleError


class PackError(BundleError):
    """What was asked for cannot be packed."""


class SourceDamagedError(BundleError):
    """Files of the source are missing, cut off or changed."""


class ForeignLayoutError(BundleError):
    """A GGUF file in a layout that llama.cpp does not load."""


class BundleExistsError(BundleError):
    """Another bundle has this channel and sequence number."""


class SignaturesError(BundleError):
    """Signatures that were made elsewhere are not of this bundle, or there are none."""


class ReceiptRefusedError(BundleError):
    """Receipts are not signed by the site's device, do not follow each other, or are too few."""

    exit_code = 11


class QuantizeError(BundleError):
    """The engine's child process crashed or refused."""
