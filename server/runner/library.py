"""The engine with one model loaded: weights, context, batch, KV cache. Native.

Wrong calls abort the whole process, so every argument that can do so is checked here first.
Only the decode thread calls these methods, except `Engine.abort`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwprobe.settings import EngineSettings
from server.errors import EngineRefusedError, LoadFailedError
from server.runner.batch import Batch
from server.runner.bounds import check_room
from server.runner.embedding import Frame
from server.runner.lastwords import MisuseError
from server.runner.loading import has_state, load_adapters, load_model, open_context, refused
from server.runner.native import LIB, LOG, QUICK
from server.runner.pace import TILE_ROWS
from server.runner.positions import Positions
from server.runner.shape import Shape
from server.runner.sight import Picture, Sight, row_length
from server.runner.vocabulary import Vocabulary

Row = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
_BYTES = ctypes.POINTER(ctypes.c_ubyte)

WARM_UP_TOKENS = 32
"""Why: enough to take the kernels for batches, a second's work on the slowest machine."""

OK, NO_ROOM, ABORTED = 0, 1, 2
"""Answers of decode; below zero is a refused batch or a failed computation. Source: llama.h."""


class Engine:
    """One model, one context.

    Attributes:
        vocabulary: its tokens.
        shape: what it can hold and do.
        batch: what `decode` computes.
        scales: of its adapters, where a request asks for none.
        prefill_rate: tokens per second, as measured once after loading.
        sight: its projector; ``None`` without one.
    """

    def __init__(
        self,
        *,
        model_path: Path,
        settings: EngineSettings,
        adapters: Sequence[tuple[str, float]] = (),
        projector: Path | None = None,
        on_progress: Callable[[float], bool] = lambda _fraction: True,
    ) -> None:
        """Load the model; ``on_progress`` gets 0 to 1 and returns whether to go on.

        Raises:
            LoadFailedError: the engine refused the file, the settings, an adapter or the
                projector.
        """
        self._abort_flag = ctypes.create_string_buffer(2)
        self._model: Any = None
        self._context: Any = None
        self.sight: Sight | None = None
        self._readable = 0
        self._positions = Positions()
        check_room(model_path, settings)
        LIB.llama_backend_init()
        try:
            self._model = load_model(model_path, settings, on_progress)
            self.vocabulary = Vocabulary(self._model)
            self._context = open_context(self._model, settings, abort_flag=self._abort_flag)
            self._most_outputs = settings.output_rows
            self._most_at_once = settings.num_ubatch
            self._adapters = load_adapters(self._model, [path for path, _scale in adapters])
            self.scales = tuple(scale for _path, scale in adapters)
            self._applied: tuple[float, ...] = ()
            self.use_adapters(self.scales)
            self._memory = LIB.llama_get_memory(self._context)
            self.batch = Batch(int(LIB.llama_n_batch(self._context)))
            self._rows: Row | None = None
            self._rows_address = 0
            pooling = int(LIB.llama_pooling_type(self._context))
            self.pooling_none = pooling == LIB.LLAMA_POOLING_TYPE_NONE
            self._ranks = pooling == LIB.LLAMA_POOLING_TYPE_RANK
            self._width = self._vector_length()
            divisible = self._warm_up_pooled() if settings.pooled else self._warm_up()
            if projector is not None:
                self.sight = self._open_eyes(projector, settings)
            self.shape = self._measure(settings, divisible=divisible)
        except BaseException:
            self.close()
            raise

    @property
    def rank_template(self) -> str:
        """The text in which a reranker reads query and document; empty without one."""
        text: bytes | None = LIB.llama_model_chat_template(self._model, b"rerank")
        return (text or b"").decode(errors="replace")

    @property
    def memory(self) -> dict[str, int]:
        """Bytes per buffer type."""
        return dict(LOG.memory)

    @property
    def system_info(self) -> str:
        """The engine's line about its build."""
        text: bytes = LIB.llama_print_system_info()
        return text.decode(errors="replace")

    def decode(self) -> int:
        """Compute the batch; returns the engine's answer, see `OK`, `NO_ROOM`, `ABORTED`.

        Raises:
            MisuseError: there is no batch, or the engine would not survive it.
        """
        size, outputs = self.batch.size, self.batch.outputs
        if not self._context or not size:
            raise MisuseError("decode: expected an open engine and a batch")
        if outputs > self._most_outputs:
            raise MisuseError(f"decode: expected at most {self._most_outputs} outputs: {outputs}")
        if size > self._most_at_once and not LIB._lib.llama_get_causal_attn(self._context):  # noqa: SLF001 - not among the bindings
            raise MisuseError(
                f"decode: expected at most {self._most_at_once} tokens that see each other: {size}"
            )
        self._readable = 0
        answer: int = LIB.llama_decode(self._context, self.batch.native)
        if answer == OK:
            # GPUs and workers go on by themselves. `logits` would wait for them with the
            # interpreter's lock, which the threads of a tunnel to a worker need.
            LIB.llama_synchronize(self._context)
            self._readable = outputs
        return answer

    def position(self, sequence: int, place: int) -> int:
        """Where a place of a sequence stands; see `positions`."""
        return self._positions.at(sequence, place)

    def decode_picture(
        self, picture: Picture, *, first: int, count: int, place: int, sequence: int, output: bool
    ) -> int:
        """Compute rows of a picture in place of tokens; answers as `decode` does.

        Args:
            picture: of which.
            first: of these rows.
            count: of them.
            place: of the first in the sequence.
            sequence: where they belong.
            output: the last one's logits are wanted.

        Raises:
            EngineRefusedError: the engine could not compute the picture.
        """
        self._check(sequence)
        sight, end = self.sight, first + count
        if sight is None or not 0 <= first < end <= picture.count:
            raise MisuseError(f"picture: expected a projector and rows, found {first} to {end}")
        rows = sight.rows(picture)[first:end]
        begin = place - first
        position = self.position(sequence, begin)
        grid = picture.grid(position)[:, first:end] if sight.grid else None
        self.batch.put_rows(
            rows, position=position + first, sequence=sequence, output=output, grid=grid
        )
        answer = self._decode_seen(causal=sight.causal)
        if sight.grid and answer == OK and end == picture.count:
            self._positions.show(sequence, begin, rows=end, positions=picture.positions)
        return answer

    def _decode_seen(self, *, causal: bool) -> int:
        if causal:
            return self.decode()
        LIB.llama_set_causal_attn(self._context, False)
        try:
            return self.decode()
        finally:
            LIB.llama_set_causal_attn(self._context, True)

    def logits(self, output: int) -> Row:
        """The logits of the ``output``-th asked-for token of the last batch: float32[n_vocab].

        A view: it is overwritten by the next decode.

        Raises:
            MisuseError: that many were not asked for, or the decode failed.
        """
        self._check_output(output)
        pointer = QUICK.get_logits(self._context)
        if not pointer:
            raise RuntimeError("the engine gave no logits")
        address = ctypes.addressof(pointer.contents)
        if self._rows is None or address != self._rows_address:
            shape = (self.shape.output_rows, self.shape.vocabulary_size)
            self._rows = np.ctypeslib.as_array(pointer, shape=shape)
            self._rows_address = address
        row: Row = self._rows[output]
        return row

    def hidden(self, output: int) -> Row:
        """What the model computed for the ``output``-th token of the last batch: float32[n_embd].

        Only after `show_hidden`, for a batch in which every token is an output. A copy.

        Raises:
            EngineRefusedError: the model gives none.
            MisuseError: that many were not asked for, or the decode failed.
        """
        self._check_output(output)
        return self._copied(LIB.llama_get_embeddings_ith(self._context, output))

    def show_hidden(self, *, wanted: bool) -> None:
        """Whether the next decodes keep what `hidden` reads; they then output every token."""
        LIB.llama_set_embeddings(self._context, wanted)

    def pooled(self, sequence: int) -> Row:
        """The vector of a sequence of the last batch, or its scores. A copy.

        Raises:
            EngineRefusedError: the model gives none.
        """
        self._check(sequence)
        return self._copied(LIB.llama_get_embeddings_seq(self._context, sequence))

    def use_adapters(self, scales: tuple[float, ...]) -> None:
        """Apply the adapters at these scales from the next decode on; one scale for each.

        Raises:
            LoadFailedError: the engine cannot.
        """
        if scales == self._applied:
            return
        count = len(self._adapters)
        if len(scales) != count:
            raise MisuseError(f"scales: expected {count}, found {len(scales)}")
        kind = LIB.llama_adapter_lora_p_ctypes
        pointers = (kind * count)(*(ctypes.cast(handle, kind) for handle in self._adapters))
        values = (ctypes.c_float * count)(*scales)
        if LIB.llama_set_adapters_lora(self._context, pointers, count, values) != 0:
            raise refused("the engine could not apply the adapters")
        self._applied = scales

    def forget(self) -> None:
        """Empty the cache, if the model has one."""
        self._positions.clear()
        if self._memory:
            LIB.llama_memory_clear(self._memory, False)

    def _copied(self, pointer: Any) -> Row:
        if not pointer:
            raise EngineRefusedError("the model gives no vectors")
        vector: Row = np.ctypeslib.as_array(pointer, (self._width,)).copy()
        return vector

    def abort(self) -> None:
        """Make a running decode stop with `ABORTED`; may be called from any thread.

        The engine polls the flag between graph nodes. On a GPU it does not.
        """
        self._abort_flag[0] = b"x"

    def rearm(self) -> None:
        """Take `abort` back."""
        self._abort_flag[0] = b"\0"

    def remove(self, sequence: int, start: int) -> bool:
        """Forget all places from ``start`` on; False if the model cannot."""
        self._check(sequence)
        self._positions.cut(sequence, start)
        return self._remove(sequence, self.position(sequence, start), -1)

    def share(self, source: int, target: int, end: int) -> None:
        """Let ``target`` have the first ``end`` places of ``source`` without copying cells."""
        self._check(source)
        self._check(target)
        self._positions.copy(source, target, end)
        LIB.llama_memory_seq_cp(self._memory, source, target, 0, self.position(source, end))

    def slide(self, sequence: int, start: int, end: int) -> None:
        """Forget places ``start`` to ``end`` and close the gap; not where pictures shift it."""
        self._check(sequence)
        if not self.shape.can_shift:
            raise MisuseError("slide: this model's positions cannot be moved")
        self._remove(sequence, start, end)
        LIB.llama_memory_seq_add(self._memory, sequence, end, -1, start - end)

    def last_position(self, sequence: int) -> int:
        """Highest place of a sequence; -1 when it is empty."""
        self._check(sequence)
        last = int(LIB.llama_memory_seq_pos_max(self._memory, sequence))
        return self._positions.place(sequence, last)

    def _remove(self, sequence: int, start: int, end: int) -> bool:
        return bool(LIB.llama_memory_seq_rm(self._memory, sequence, start, end))

    def state_bytes(self, sequence: int) -> int:
        """Bytes that `save_state` will write for a sequence."""
        self._check(sequence)
        return int(LIB.llama_state_seq_get_size_ext(self._context, sequence, 0))

    def save_state(self, sequence: int, target: Bytes) -> bool:
        """Write a sequence's state into all of ``target``, uint8; False if the engine did not.

        Nor does it where pictures take fewer positions than rows: the state does not tell.
        """
        self._check(sequence)
        if self._positions.holds(sequence):
            return False
        pointer = target.ctypes.data_as(_BYTES)
        count = LIB.llama_state_seq_get_data_ext(self._context, pointer, target.size, sequence, 0)
        return 0 < int(count) == target.size

    def load_state(self, sequence: int, source: Bytes) -> bool:
        """Fill a sequence from all of ``source``, uint8; False leaves it empty.

        The state carries no sign of its model: it must come from an equal engine.
        """
        self._check(sequence)
        self._positions.cut(sequence, 0)
        pointer = source.ctypes.data_as(_BYTES)
        count = LIB.llama_state_seq_set_data_ext(self._context, pointer, source.size, sequence, 0)
        if 0 < int(count) == source.size:
            return True
        LIB.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def can_resume(self, sequence: int, place: int) -> bool:
        """Whether decoding may go on at ``place`` as if all before it were still there."""
        self._check(sequence)
        if not self.shape.divisible:
            return self.last_position(sequence) + 1 == place
        first = int(LIB.llama_memory_seq_pos_min(self._memory, sequence))
        return first <= max(0, self.position(sequence, place) - self.shape.window_tokens)

    def close(self) -> None:
        """Free projector, context and model; may be called twice."""
        if self.sight:
            self.sight.close()
        self.sight = None
        if self._context:
            LIB.llama_free(self._context)
        if self._model:
            LIB.llama_model_free(self._model)
        self._context = self._model = None

    def _measure(self, settings: EngineSettings, *, divisible: bool) -> Shape:
        cells = int(LIB.llama_n_ctx(self._context))
        return Shape(
            context_tokens=cells // settings.slots,
            cells=cells,
            batch_tokens=self.batch.capacity,
            sequences=int(LIB.llama_n_seq_max(self._context)),
            output_rows=settings.output_rows,
            vocabulary_size=self.vocabulary.size,
            divisible=divisible,
            can_shift=bool(LIB.llama_memory_can_shift(self._memory)),
            window_tokens=int(LIB.llama_model_n_swa(self._model)),
            pooled=settings.pooled,
            ranks=settings.pooled and self._ranks,
            trained_tokens=int(LIB.llama_model_n_ctx_train(self._model)),
            saved_bytes=settings.saved_bytes,
            step_tokens=min(self.batch.capacity, int(LIB.llama_n_ubatch(self._context))),
            whole_pictures=self.sight is not None and (self.sight.grid or not self.sight.causal),
            parted_pictures=self.sight is not None and self.sight.causal,
            tile_rows=0 if settings.num_gpu else TILE_ROWS,
        )

    def _open_eyes(self, path: Path, settings: EngineSettings) -> Sight:
        """On the GPU if one holds the whole model: it is counted with the last layer."""
        layers = int(LIB.llama_model_n_layer(self._model)) + 1
        return Sight(
            path,
            self._model,
            threads=settings.threads,
            use_gpu=settings.num_gpu >= layers and not settings.tensor_split,
            width=row_length(self._model),
        )

    def _vector_length(self) -> int:
        length = LIB.llama_model_n_cls_out if self._ranks else LIB.llama_model_n_embd_out
        return int(length(self._model))

    def _warm_up(self) -> bool:
        """Decode two tokens and take one back; returns whether that is possible.

        It proves that the engine computes, and pulls the weights in. A batch then tells how fast.
        """
        first = max(self.vocabulary.bos, 0)
        for position in range(2):
            self.batch.clear()
            self.batch.add([first], position=position, sequence=0, output=True)
            if self.decode() != OK:
                raise refused("the engine could not decode a token")
        divisible = bool(LIB.llama_memory_seq_rm(self._memory, 0, 1, -1))
        LIB.llama_memory_clear(self._memory, False)
        self.batch.clear()
        sample = min(WARM_UP_TOKENS, self.batch.capacity)
        self.batch.add([first] * sample, position=0, sequence=0, output=True)
        begin_s = time.perf_counter()
        if self.decode() != OK:
            raise refused("the engine could not decode a batch")
        self.prefill_rate = sample / (time.perf_counter() - begin_s)
        LIB.llama_memory_clear(self._memory, False)
        return divisible and not has_state(self._model)

    def _warm_up_pooled(self) -> bool:
        """Embed one text of a few tokens; nothing is kept between texts."""
        _ = self._checked_frame()
        sample = min(WARM_UP_TOKENS, self.batch.capacity)
        sample = min(sample, int(LIB.llama_model_n_ctx_train(self._model)))
        first = max(self.vocabulary.bos, 0)
        self.batch.clear()
        self.batch.add([first] * sample, position=0, sequence=0, output=True)
        self.batch.ask_for_all()
        begin_s = time.perf_counter()
        if self.decode() != OK:
            raise refused("the engine could not compute a text")
        self.prefill_rate = sample / (time.perf_counter() - begin_s)
        self.forget()
        return False

    def _checked_frame(self) -> Frame:
        try:
            return self.vocabulary.frame
        except EngineRefusedError as error:
            raise LoadFailedError(str(error)) from error

    def _check(self, sequence: int) -> None:
        if not 0 <= sequence < self.shape.sequences:
            raise MisuseError(f"sequence: expected 0 to {self.shape.sequences - 1}: {sequence}")

    def _check_output(self, output: int) -> None:
        if not 0 <= output < self._readable:
            raise MisuseError(f"output: expected 0 to {self._readable - 1}, found {output}")
