"""The errors of packing; what is wrong with a bundle itself is said by `bundler.format.errors`.

BundleError              1
├── PackError            1  what was asked for cannot be packed
├── BundleExistsError    1  another bundle has this channel and sequence number
└── QuantizeError        1  the engine's child process crashed or refused
"""

from __future__ import annotations

from bundler.format.errors import BundleError


class PackError(BundleError):
    """What was asked for cannot be packed."""


class BundleExistsError(BundleError):
    """Another bundle has this channel and sequence number."""


class QuantizeError(BundleError):
    """The engine's child process crashed or refused."""
