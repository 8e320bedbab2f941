"""The file that holds one computed prompt: what it is for, its tokens, the engine's state. Pure.

::

    96 bytes    head: magic, binding, lengths of what follows, SHA-256 of all but itself
    scope       UTF-8: who may share it
    tokens      int32, little-endian
    state       as the engine wrote it

The state carries no sign of its model. The binding is a digest over everything that must be equal
for it to mean the same, see `server.shelving`; a file of another binding is refused.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass

MAGIC = b"satchel state 1\n"
BINDING_BYTES = 32
DIGEST_BYTES = 32
MOST_SCOPE_BYTES = 1024
MOST_TOKENS = 1 << 24
"""Longer than any context; a bound for what is read before the digest is known to be right."""

_HEAD = struct.Struct("<16s32sIIQ32s")
HEAD_BYTES = _HEAD.size

_BINDING_CHARACTERS = 16
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{48}\.state")
_PARTIAL = re.compile(r"[0-9a-f]{16}-[0-9a-f]{48}\.part")


class BadStateError(Exception):
    """A file that is not to be used; the message says why, and nothing of what it holds."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first bytes of a file.

    Attributes:
        scope_bytes, tokens, state_bytes: lengths of the parts.
        digest: SHA-256 of all parts, and of the head with this field zero.
    """

    binding: bytes
    scope_bytes: int
    tokens: int
    state_bytes: int
    digest: bytes

    @property
    def state_at(self) -> int:
        """Where the state begins."""
        return HEAD_BYTES + self.scope_bytes + 4 * self.tokens

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self.state_at + self.state_bytes

    def pack(self, digest: bytes = bytes(32)) -> bytes:
        """The bytes, with a digest."""
        return _HEAD.pack(
            MAGIC, self.binding, self.scope_bytes, self.tokens, self.state_bytes, digest
        )


def prefix_of(binding: bytes) -> str:
    """How the names of all files of a binding begin."""
    return binding.hex()[:_BINDING_CHARACTERS] + "-"


def name_of(binding: bytes, scope: str, tokens: tuple[int, ...]) -> str:
    """The name of a file: the same prompt for the same use has the same."""
    digest = hashlib.sha256(binding + _scope(scope) + b"\0" + _ids(tokens)).hexdigest()
    return f"{prefix_of(binding)}{digest[:48]}.state"


def partial_of(name: str) -> str:
    """The name of a file while it is written."""
    return name.removesuffix(".state") + ".part"


def is_name(name: str) -> bool:
    """Whether a whole file may be called so."""
    return _NAME.fullmatch(name) is not None


def is_partial(name: str) -> bool:
    """Whether a file being written may be called so."""
    return _PARTIAL.fullmatch(name) is not None


def digest_of(data: bytes | memoryview) -> bytes:
    """What the digest of a file should be: the field itself counts as zeros."""
    view = memoryview(data)
    found = hashlib.sha256(view[: HEAD_BYTES - DIGEST_BYTES])
    found.update(bytes(DIGEST_BYTES))
    found.update(view[HEAD_BYTES:])
    return found.digest()


def begin(
    binding: bytes, scope: str, tokens: tuple[int, ...], state_bytes: int
) -> tuple[Head, bytes]:
    """The head of a new file, its digest not yet known, and what stands between it and the state.

    Raises:
        BadStateError: the scope or the prompt is too long to be kept.
    """
    label, ids = _scope(scope), _ids(tokens)
    if len(label) > MOST_SCOPE_BYTES or len(tokens) > MOST_TOKENS:
        raise BadStateError("too long")
    return Head(binding, len(label), len(tokens), state_bytes, bytes(32)), label + ids


def parse_head(data: bytes, *, binding: bytes, size_bytes: int) -> Head:
    """Read the first `HEAD_BYTES` of a file that is so long.

    Raises:
        BadStateError: it is none, one of another binding, or not whole.
    """
    if len(data) != HEAD_BYTES:
        raise BadStateError("it is cut short")
    magic, found, scope_bytes, tokens, state_bytes, digest = _HEAD.unpack(data)
    if magic != MAGIC:
        raise BadStateError("it is no state of this version")
    if found != binding:
        raise BadStateError("it belongs to another model, engine or setting")
    if scope_bytes > MOST_SCOPE_BYTES or not 0 < tokens <= MOST_TOKENS or not state_bytes:
        raise BadStateError("its lengths make no sense")
    head = Head(found, scope_bytes, tokens, state_bytes, digest)
    if head.size_bytes != size_bytes:
        raise BadStateError("it is cut short")
    return head


def parse_label(head: Head, data: bytes) -> tuple[str, tuple[int, ...]]:
    """Scope and tokens, from what stands between head and state.

    Raises:
        BadStateError: the scope is no text.
    """
    if len(data) != head.state_at - HEAD_BYTES:
        raise BadStateError("it is cut short")
    try:
        scope = data[: head.scope_bytes].decode()
    except UnicodeDecodeError:
        raise BadStateError("its scope is no text") from None
    return scope, struct.unpack_from(f"<{head.tokens}i", data, head.scope_bytes)


def _scope(scope: str) -> bytes:
    return scope.encode("utf-8", "surrogatepass")


def _ids(tokens: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)
