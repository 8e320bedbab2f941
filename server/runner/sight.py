"""A model's eyes: a projector turns a picture into rows that stand where tokens would. Native.

`Sight.take` may be called from any thread (the engine's preparation of pictures is thread-safe);
`Sight.rows` only from the decode thread. Nothing interrupts the computing of a picture.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp as _mtmd

from server.errors import BadRequestError, EngineRefusedError, LoadFailedError
from server.images import check_images, is_webp
from server.runner.native import LIB, LOG, log_to
from server.runner.pictures import picture_key, places

MTMD: Any = _mtmd
Rows = npt.NDArray[np.float32]

PROBE_SIDE = 512
"""Pixels of the picture that is computed once at load: it shows that the projector works, and how
long it takes. Why: models of one size scale it up, others cut it into few pieces."""

MOST_ROWS = (1024 // 28) ** 2
"""Of one picture, where the projector keeps its size. Why: as many as the plan has memory for, a
picture of 1024 by 1024 pixels with patches of 14 pixels of which four make a row."""


class Picture:
    """One picture, or a piece of one, as the projector wants it. Freed with its last reference.

    Attributes:
        key: what it is known by, see `server.runner.pictures`.
        count: rows it becomes.
        positions: how far what follows stands behind its beginning, with M-RoPE.
    """

    def __init__(self, chunk: Any, key: int) -> None:
        """Own ``chunk``."""
        self.chunk = chunk
        self.key = key
        self.count = int(MTMD.mtmd_input_chunk_get_n_tokens(chunk))
        self.positions = int(MTMD.mtmd_input_chunk_get_n_pos(chunk))
        weakref.finalize(self, MTMD.mtmd_input_chunk_free, chunk).atexit = False

    def grid(self, position: int) -> npt.NDArray[np.int32]:
        """Positions of the rows with M-RoPE, from this one on: int32[4, count], see `batch`."""
        tokens = MTMD.mtmd_input_chunk_get_tokens_image(self.chunk)
        place_of = MTMD.mtmd_image_tokens_get_decoder_pos
        each = (place_of(tokens, position, row) for row in range(self.count))
        return np.array([[at.t, at.y, at.x, at.z] for at in each], np.int32).T.copy()


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture in a prompt: its places and the tokens that its model puts around it."""

    prompt: tuple[int, ...]
    pictures: tuple[Picture, ...]


class Sight:
    """A projector beside its model.

    Attributes:
        causal: rows of a picture see only those before them, so it may be computed in parts.
        grid: a row has several positions, as with M-RoPE.
        picture_s: seconds that computing one took after the load.
    """

    def __init__(self, path: Path, model: Any, *, threads: int, use_gpu: bool, width: int) -> None:
        """Load a projector.

        Args:
            path: its file.
            model: the model it is for.
            threads: for its computations.
            use_gpu: compute on the first GPU.
            width: length of a row, the model's embedding length.

        Raises:
            LoadFailedError: the engine refuses it, or it is of a kind that is not served.
        """
        self._context: Any = None
        self._width = width
        self._held: tuple[int, Rows] | None = None
        log_to(MTMD.mtmd_log_set, MTMD.mtmd_helper_log_set)
        params = MTMD.mtmd_context_params_default()
        params.use_gpu = use_gpu
        params.print_timings = False
        params.n_threads = threads
        params.flash_attn_type = LIB.LLAMA_FLASH_ATTN_TYPE_ENABLED  # the estimate counts on it
        params.image_max_tokens = MOST_ROWS  # of projectors that keep a picture's own size
        params.warmup = True  # reserves the memory now, so that it is told with the load
        LOG.last_errors()
        self._context = MTMD.mtmd_init_from_file(str(path).encode(), model, params)
        if not self._context:
            raise _refused("the engine could not load the projector")
        try:
            self.causal = True
            self.grid = bool(MTMD.mtmd_decode_use_mrope(self._context))
            self._check()
            self._probe()
        except BaseException:
            self.close()
            raise

    def take(self, images: Sequence[bytes]) -> tuple[Seen, ...]:
        """Decode images and scale them for the projector.

        Raises:
            EngineRefusedError: one cannot be decoded.
        """
        try:
            check_images(images)
        except BadRequestError as error:
            raise EngineRefusedError(str(error)) from error
        return tuple(self._take(data, index) for index, data in enumerate(images))

    def rows(self, picture: Picture) -> Rows:
        """The rows of a picture: float32[count, n_embd]. Those of the last picture are kept.

        Raises:
            EngineRefusedError: the engine could not compute it.
        """
        if self._held is not None and self._held[0] == picture.key:
            return self._held[1]
        if MTMD.mtmd_encode_chunk(self._context, picture.chunk) != 0:
            raise EngineRefusedError("the engine could not compute the image")
        pointer = MTMD.mtmd_get_output_embd(self._context)
        if not pointer:
            raise EngineRefusedError("the engine gave no rows for the image")
        rows: Rows = np.ctypeslib.as_array(pointer, (picture.count, self._width)).copy()
        self._held = (picture.key, rows)
        return rows

    def in_hand(self, key: int) -> bool:
        """Whether a picture's rows are kept."""
        return self._held is not None and self._held[0] == key

    def close(self) -> None:
        """Free the projector; may be called twice."""
        if self._context:
            MTMD.mtmd_free(self._context)
        self._context = None

    def _check(self) -> None:
        if not MTMD.mtmd_support_vision(self._context):
            raise LoadFailedError("projector: expected one for images, found one for sound")

    def _probe(self) -> None:
        grey = bytes([128]) * (3 * PROBE_SIDE * PROBE_SIDE)
        pixels = (ctypes.c_uint8 * len(grey)).from_buffer_copy(grey)
        seen = self._cut(MTMD.mtmd_bitmap_init(PROBE_SIDE, PROBE_SIDE, pixels), b"")
        if not seen.pictures:
            raise _refused("the engine could not prepare a picture")
        first = seen.pictures[0]
        self.causal = not MTMD.mtmd_decode_use_non_causal(self._context, first.chunk)
        if self.grid and (first.grid(1) - first.grid(0))[:3].min() < 1:
            raise LoadFailedError("projector: pictures whose positions count from 0 are not served")
        begin_s = time.perf_counter()
        try:
            self.rows(first)
        except EngineRefusedError as error:
            raise _refused(str(error)) from error
        self.picture_s = time.perf_counter() - begin_s
        self._held = None

    def _take(self, data: bytes, index: int) -> Seen:
        if is_webp(data):
            return self._take_webp(data, index)
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        bitmap = MTMD.mtmd_helper_bitmap_init_from_buf(self._context, buffer, len(data), False)
        if not bitmap:
            raise EngineRefusedError(f"image {index}: broken: it cannot be decoded")
        return self._cut(bitmap, data)

    def _take_webp(self, data: bytes, index: int) -> Seen:
        from server.runner.webp import rgb_of  # noqa: PLC0415 - most runners never need it

        try:
            width, height, rgb = rgb_of(data)
        except EngineRefusedError as refusal:
            raise EngineRefusedError(f"image {index}: {refusal}") from refusal
        pixels = (ctypes.c_uint8 * len(rgb)).from_buffer_copy(rgb)
        return self._cut(MTMD.mtmd_bitmap_init(width, height, pixels), data)

    def _cut(self, bitmap: Any, data: bytes) -> Seen:
        """What an image becomes in a prompt; frees the bitmap."""
        chunks = MTMD.mtmd_input_chunks_init()
        try:
            part = MTMD.mtmd_input_part(text=None, bitmap=bitmap)
            kind = ctypes.POINTER(MTMD.mtmd_input_part)
            parts = (kind * 1)(ctypes.pointer(part))
            if MTMD.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False) != 0:
                raise EngineRefusedError("the engine could not prepare the image")
            prompt: tuple[int, ...] = ()
            pictures: list[Picture] = []
            for index in range(MTMD.mtmd_input_chunks_size(chunks)):
                chunk = MTMD.mtmd_input_chunks_get(chunks, index)
                if MTMD.mtmd_input_chunk_get_type(chunk) == MTMD.MTMD_INPUT_CHUNK_TYPE_TEXT:
                    prompt += _tokens(chunk)
                    continue
                key = picture_key(data, len(pictures))
                picture = Picture(MTMD.mtmd_input_chunk_copy(chunk), key)
                pictures.append(picture)
                prompt += places(key, picture.count)
            return Seen(prompt, tuple(pictures))
        finally:
            MTMD.mtmd_input_chunks_free(chunks)
            MTMD.mtmd_bitmap_free(bitmap)


def _tokens(chunk: Any) -> tuple[int, ...]:
    count = ctypes.c_size_t()
    pointer = MTMD.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
    return tuple(int(pointer[index]) for index in range(count.value))


def _refused(message: str) -> LoadFailedError:
    reason = LOG.last_errors()
    return LoadFailedError(f"{message}: {reason}" if reason else message)


def row_length(model: Any) -> int:
    """Length of the rows a model takes in place of tokens."""
    return int(LIB.llama_model_n_embd_inp(model))
