"""What a reader refuses beyond: the table of docs/bundle-format.md, section 7."""

from __future__ import annotations

from typing import Final

FORMAT_VERSION: Final = 1
MAX_ENVELOPE_BYTES: Final = 8 << 20
MAX_PAYLOAD_BYTES: Final = 4 << 20
MAX_SIGNATURES: Final = 64
MAX_ROOT_BYTES: Final = 512 << 10
MAX_ROOT_ENVELOPE_BYTES: Final = 2 << 20
"""A root of the largest size in base64, with 64 signatures of the largest size."""
MAX_PERMIT_BYTES: Final = 512 << 10
MAX_ROOT_VERSIONS: Final = 1_024
MAX_UPDATE_BYTES: Final = 2 << 20
MAX_UPDATE_STORED_BYTES: Final = 64 << 10
"""A trust update on paper: compressed, and what it may become."""
MAX_ROOT_KEYS: Final = 64
MAX_CHANNELS: Final = 256
MAX_REVOKED: Final = 4_096
MAX_MODELS: Final = 1_024
MAX_VARIANTS: Final = 64
MAX_ARTIFACTS: Final = 4_096
MAX_BLOBS: Final = 65_536
MAX_BLOB_BYTES: Final = 256 << 20
MAX_ARTIFACT_BYTES: Final = 4 << 40
MAX_CHUNK_BYTES: Final = 16 << 20
MAX_INDEX_BYTES: Final = 256 << 20
MAX_SEGMENTS: Final = 65_536
MAX_SEGMENT_BYTES: Final = (4 << 30) - 2
"""FAT32 holds files of at most 4 GiB - 1."""
MAX_ZSTD_WINDOW_BYTES: Final = 8 << 20
MAX_JSON_DEPTH: Final = 32
MAX_STRING_BYTES: Final = 64 << 10
MAX_INTEGER: Final = (1 << 53) - 1
"""The largest integer every JSON reader keeps exact (RFC 8259, section 6)."""
MAX_NOTES_BYTES: Final = 4_096
MAX_TEXT_BYTES: Final = 128
CHUNK_BYTES: Final = 4 << 20
"""Writers cut here. Ratio does not depend on it; it is what one damaged sector costs."""
SEGMENT_BYTES: Final = 1 << 30
"""Writers close segments here, so that FAT32 and DVDs take them."""
