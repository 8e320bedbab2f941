"""How a model is opened: file, context, adapters. Native; only the decode thread calls this."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hwprobe.errors import WorkerError
from hwprobe.remote.devices import device_list
from hwprobe.settings import PROPOSED_ROWS, EngineSettings, KvType
from server.errors import LoadFailedError
from server.runner.native import LIB, LOG

_GGML_TYPE: dict[KvType, int] = {"f16": 1, "q8_0": 8, "q4_0": 2}
"""Source: ggml.h, enum ggml_type."""


class _Override(ctypes.Structure):
    """``llama_model_tensor_buft_override`` of llama.h; one without a pattern ends a list."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def load_model(path: Path, settings: EngineSettings, on_progress: Callable[[float], bool]) -> Any:
    """Load a model file; ``on_progress`` gets 0 to 1 and returns whether to go on.

    Raises:
        LoadFailedError: the engine could not.
    """
    params = LIB.llama_model_default_params()
    params.n_gpu_layers = settings.num_gpu
    params.load_mode = LIB.LLAMA_LOAD_MODE_MMAP if settings.use_mmap else LIB.LLAMA_LOAD_MODE_NONE
    params.use_extra_bufts = settings.repack
    if settings.num_gpu == 0:
        # An empty list, not NULL: NULL means all devices, and their compute buffers.
        no_devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.addressof(no_devices)
    overrides = None
    if settings.expert_pattern:
        plain = LIB._lib.ggml_backend_cpu_buffer_type  # noqa: SLF001 - not among the bindings
        plain.restype = ctypes.c_void_p
        first = _Override(settings.expert_pattern.encode(), plain())
        overrides = (_Override * 2)(first, _Override(None, None))  # held until the load is over
        params.tensor_buft_overrides = ctypes.addressof(overrides)
    if settings.workers and settings.num_gpu:
        remote = worker_devices(settings.workers)
        params.devices = ctypes.addressof(remote)
    if settings.tensor_split:
        shares = (ctypes.c_float * LIB.llama_max_devices())(*settings.tensor_split)
        params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
    callback = LIB.llama_progress_callback(lambda fraction, _data: on_progress(fraction))
    params.progress_callback = callback
    LOG.last_errors()
    model = LIB.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise refused("the engine could not load the model")
    return model


def worker_devices(addresses: Sequence[str]) -> Any:
    """The engine's devices for workers, as a list that ends with nothing.

    Raises:
        LoadFailedError: one of them cannot be used.
    """
    try:
        return device_list(LIB._lib, addresses)  # noqa: SLF001 - not among the bindings
    except WorkerError as error:
        raise LoadFailedError(str(error), hint=error.hint) from error


def open_context(model: Any, settings: EngineSettings, *, abort_flag: Any) -> Any:
    """Make a context; the first byte of ``abort_flag``, a buffer of two, ends its decodes.

    Raises:
        LoadFailedError: the engine could not, with these settings.
    """
    params = LIB.llama_context_default_params()
    params.n_ctx = settings.kv_cells
    params.n_batch = settings.num_batch
    params.n_ubatch = settings.num_ubatch
    params.n_seq_max = settings.sequences
    # The engine asserts n_outputs_max >= n_seq_max; left at 0 it is n_batch rows of logits.
    params.n_outputs_max = settings.output_rows
    params.embeddings = settings.pooled
    if not settings.pooled:  # vectors are then those of single tokens
        params.pooling_type = LIB.LLAMA_POOLING_TYPE_NONE
    params.n_outputs_max_per_seq = 1 if settings.pooled else 1 + PROPOSED_ROWS
    params.n_threads = params.n_threads_batch = settings.threads
    params.flash_attn_type = int(settings.flash_attention)
    params.type_k = params.type_v = _GGML_TYPE[settings.kv_type]
    params.offload_kqv = params.op_offload = settings.num_gpu != 0
    params.kv_unified = True
    params.swa_full = False
    params.no_perf = True
    # strlen of the flag is the abort callback: no interpreter lock, no Python frame.
    libc = ctypes.CDLL(None)
    params.abort_callback = ctypes.cast(libc.strlen, LIB.ggml_abort_callback)
    params.abort_callback_data = ctypes.addressof(abort_flag)
    context = LIB.llama_init_from_model(model, params)
    if not context:
        raise refused("the engine could not make a context")
    return context


def load_adapters(model: Any, paths: Sequence[str]) -> list[Any]:
    """Load LoRA adapters.

    Raises:
        LoadFailedError: one is none for this model.
    """
    handles = []
    for path in paths:
        handle = LIB.llama_adapter_lora_init(model, path.encode())
        if not handle:
            raise refused(f"adapter {Path(path).name}: not an adapter for this model")
        handles.append(handle)
    return handles


def has_state(model: Any) -> bool:
    """Whether the model keeps one running state per sequence instead of cells only."""
    return bool(LIB.llama_model_is_recurrent(model) or LIB.llama_model_is_hybrid(model))


def refused(message: str) -> LoadFailedError:
    """An error with what the engine said last."""
    reason = LOG.last_errors()
    return LoadFailedError(f"{message}: {reason}" if reason else message)
