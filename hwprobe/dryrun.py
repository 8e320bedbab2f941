"""The engine's child process: measure a model without loading it, or try one for real.

Run as ``python -P -m hwprobe.dryrun``: one JSON request on stdin, one JSON answer on the file
that stdout was when the process started. It is the only module here that loads the engine.

Rules:
 * nothing but the answer reaches the parent's pipe: native code that prints goes to stderr;
 * the process may abort, crash or hang at any point; the parent reads that as a verdict;
 * it dies with its parent, and the kernel takes it first when memory runs out.

Requests: ``{"mode": "info"}``; ``{"mode": "breakdown", "model_path": …, "settings": [{…}, …]}``
with one load of the metadata for all settings; ``{"mode": "self_test", "model_path": …,
"settings": {…}}``; ``canary`` is the same and tells the logits; ``time`` is the same and tells
how long a prompt and single tokens take. Answers: ``{"ok": true, …}`` or
``{"ok": false, "message": …}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hwprobe.errors import WorkerError
from hwprobe.remote.devices import device_list
from hwprobe.settings import EngineSettings

# Without this ggml runs a debugger on itself when it aborts. It is read when the engine loads.
os.environ["GGML_NO_BACKTRACE"] = "1"
# The inventory counts GPUs by bus address; left alone, CUDA puts the fastest first.
os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"

import llama_cpp
from llama_cpp import llama_cpp as api

MEMORY_BREAKDOWN = "_Z26llama_get_memory_breakdownPK13llama_context"
"""The C++ name of llama_get_memory_breakdown in llama-ext.h; exported, but not bound."""
KEPT_LOG_LINES = 40
SELF_TEST_BATCH_TOKENS = 64
"""Why: prefill kernels differ from decode kernels and start at 32 rows or less."""
SELF_TEST_SINGLE_TOKENS = 2
TIMED_TOKENS = 16
"""Why: the median of 16 is steady enough, and a small board decodes them in seconds."""
_PR_SET_PDEATHSIG = 1
_KV_TYPES = {
    "f16": api.GGML_TYPE_F16,
    "q8_0": api.GGML_TYPE_Q8_0,
    "q4_0": api.GGML_TYPE_Q4_0,
}
_LOG_LINES: deque[str] = deque(maxlen=KEPT_LOG_LINES)
_WARNING = 3
_GPU_KINDS = (1, 2)
"""Source: enum ggml_backend_dev_type in ggml-backend.h: discrete and integrated GPUs."""


class EngineRefusedError(Exception):
    """The engine returned a failure; the message is its own last words."""


class _Header(ctypes.Structure):
    """``std::map`` of libstdc++: an empty comparison, the header node, the count."""

    _fields_ = (
        ("compare", ctypes.c_void_p),
        ("colour", ctypes.c_int),
        ("root", ctypes.c_void_p),
        ("leftmost", ctypes.c_void_p),
        ("rightmost", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
    )


class _Override(ctypes.Structure):
    """``llama_model_tensor_buft_override``: names that match go to this type of buffer."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


_KEPT: list[Any] = []
"""What the engine was given an address of."""


class _Node(ctypes.Structure):
    """A node of that map: buffer type → bytes for weights, context, compute."""

    _fields_ = (
        ("colour", ctypes.c_int),
        ("parent", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("buffer_type", ctypes.c_void_p),
        ("weights", ctypes.c_size_t),
        ("context", ctypes.c_size_t),
        ("compute", ctypes.c_size_t),
    )


@api.llama_log_callback  # type: ignore[untyped-decorator]
def keep_log(level: int, text: bytes | None, _user: object) -> None:
    """Keep warnings and errors; a call-back must never raise."""
    with contextlib.suppress(Exception):
        if level >= _WARNING and text:
            _LOG_LINES.append(text.decode(errors="replace").rstrip("\n"))


def _native(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the engine's own copy of its libraries.

    The wheel carries each library three times; opening one by name would load a second instance.
    """
    function = getattr(api._lib, name)  # noqa: SLF001 - the binding's only handle on its library
    function.restype = result
    function.argtypes = list(arguments)
    return function


def _model_params(settings: EngineSettings, *, no_alloc: bool) -> Any:
    params = api.llama_model_default_params()
    params.n_gpu_layers = settings.num_gpu
    params.use_extra_bufts = settings.repack
    params.no_alloc = no_alloc
    # Mapping and simulated allocation exclude each other in the engine (an assertion).
    mapped = settings.use_mmap and not no_alloc
    params.load_mode = api.LLAMA_LOAD_MODE_MMAP if mapped else api.LLAMA_LOAD_MODE_NONE
    if settings.expert_pattern:
        overrides = _kept_in_host_memory(settings.expert_pattern.encode())
        params.tensor_buft_overrides = ctypes.addressof(overrides)
        _KEPT.append(overrides)
    if settings.workers and settings.num_gpu:
        # Bound to the structure, which holds only its address.
        params.kept = device_list(api._lib, settings.workers)  # noqa: SLF001 - as in `_native`
        params.devices = ctypes.addressof(params.kept)
    if settings.tensor_split:
        split = (ctypes.c_float * api.llama_max_devices())(*settings.tensor_split)
        params.tensor_split = ctypes.cast(split, ctypes.POINTER(ctypes.c_float))
    return params


def _kept_in_host_memory(pattern: bytes) -> Any:
    """The list of overrides that the engine reads until the load is over; an empty one ends it."""
    plain = _native("ggml_backend_cpu_buffer_type", ctypes.c_void_p)()
    return (_Override * 2)(_Override(pattern, plain), _Override(None, None))


def _context_params(settings: EngineSettings) -> Any:
    params = api.llama_context_default_params()
    params.n_ctx = settings.kv_cells
    params.n_seq_max = settings.sequences
    params.kv_unified = True
    params.n_batch = settings.num_batch
    params.n_ubatch = settings.num_ubatch
    # A row of logits per sequence and some more; where texts are pooled, every token is an output.
    params.n_outputs_max = settings.output_rows
    params.embeddings = settings.pooled
    params.n_threads = settings.threads
    params.n_threads_batch = settings.threads
    params.type_k = params.type_v = _KV_TYPES[settings.kv_type]
    params.flash_attn_type = 1 if settings.flash_attention else 0
    # The binding's default keeps the whole context for sliding-window blocks.
    params.swa_full = False
    return params


@contextlib.contextmanager
def open_model(path: str, settings: EngineSettings, *, no_alloc: bool) -> Iterator[Any]:
    """A model, for as long as the block lasts."""
    # `params` stays bound until the load is over: it holds the array behind tensor_split.
    params = _model_params(settings, no_alloc=no_alloc)
    model = api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise EngineRefusedError(last_words("the engine cannot load the model"))
    try:
        yield model
    finally:
        api.llama_model_free(model)


@contextlib.contextmanager
def open_context(
    model: Any, settings: EngineSettings, *, outputs: int | None = None
) -> Iterator[Any]:
    """A context of a model; ``outputs`` is how many rows of logits a step may give."""
    params = _context_params(settings)
    if outputs is not None:
        params.n_outputs_max = outputs
    context = api.llama_init_from_model(model, params)
    if not context:
        raise EngineRefusedError(last_words("the engine cannot create a context"))
    try:
        yield context
    finally:
        api.llama_free(context)


def _breakdown(context: Any) -> dict[str, dict[str, Any]]:
    """Bytes per buffer type, as the engine accounts for them."""
    try:
        function = _native(MEMORY_BREAKDOWN, _Header, ctypes.c_void_p)
    except AttributeError as error:
        raise EngineRefusedError("this build of the engine shows no memory breakdown") from error
    name = _native("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
    is_host = _native("ggml_backend_buft_is_host", ctypes.c_bool, ctypes.c_void_p)
    device = _native("ggml_backend_buft_get_device", ctypes.c_void_p, ctypes.c_void_p)
    device_name = _native("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    header = function(context)
    buffers: dict[str, dict[str, Any]] = {}
    pending = [header.root]
    while pending:
        address = pending.pop()
        if not address:
            continue
        node = _Node.from_address(address)
        pending += [node.left, node.right]
        owner = device(node.buffer_type)
        buffers[name(node.buffer_type).decode()] = {
            "host": bool(is_host(node.buffer_type)),
            "device": device_name(owner).decode() if owner else "",
            "weights": node.weights,
            "context": node.context,
            "compute": node.compute,
        }
    if len(buffers) != header.count:
        raise EngineRefusedError("the engine's memory breakdown has another layout than expected")
    return buffers


def _measure(path: str, settings: list[EngineSettings]) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    loaded: tuple[object, ...] = ()
    with contextlib.ExitStack() as models:
        model = None
        for one in settings:
            wanted = (one.num_gpu, one.tensor_split, one.workers, one.repack, one.cpu_experts)
            if model is None or wanted != loaded:
                models.close()
                model = models.enter_context(open_model(path, one, no_alloc=True))
                loaded = wanted
            try:
                with open_context(model, one) as context:
                    results.append({"ok": True, "buffers": _breakdown(context)})
            except EngineRefusedError as error:
                results.append({"ok": False, "message": str(error)})
    return {"ok": True, "results": results}


def _self_test(path: str, settings: EngineSettings, *, tell: bool = False) -> dict[str, Any]:
    """Decode a batch and two single tokens; every logit must be a finite number.

    With ``tell``, the answer holds the logits of the batch's last token and of each single one.
    """
    logits: list[list[float]] = []
    with (
        open_model(path, settings, no_alloc=False) as model,
        open_context(model, settings) as context,
    ):
        vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        if vocabulary < 1:
            raise EngineRefusedError("the model has no vocabulary")
        batch = min(SELF_TEST_BATCH_TOKENS, settings.num_batch, settings.kv_cells // 2)
        batch = max(1, min(batch, api.llama_model_n_ctx_train(model) // 2))
        for count in (batch, *[1] * SELF_TEST_SINGLE_TOKENS):
            decode(context, [(7919 * position) % vocabulary for position in range(1, count + 1)])
            if settings.pooled:
                _check_vector(context, model)
            else:
                values = _check_logits(context, vocabulary)
                if tell:
                    logits.append(values)
        return {"ok": True, "buffers": _breakdown(context), "logits": logits}


def _time(path: str, settings: EngineSettings) -> dict[str, Any]:
    """Time a prompt of one batch, then single tokens; the first of each warms up.

    Seconds of the second prompt, and of each single token.
    """
    with (
        open_model(path, settings, no_alloc=False) as model,
        open_context(model, settings) as context,
    ):
        vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        memory = api.llama_get_memory(context)
        prompt = [(7919 * place) % vocabulary for place in range(1, settings.num_batch + 1)]
        seconds = []
        for _ in range(2):
            api.llama_memory_clear(memory, True)
            started = time.perf_counter()
            decode(context, prompt)
            seconds.append(time.perf_counter() - started)
        api.llama_memory_clear(memory, True)
        singles = []
        for place in range(TIMED_TOKENS + 1):
            started = time.perf_counter()
            decode(context, [(7919 * place) % vocabulary])
            singles.append(time.perf_counter() - started)
    return {"ok": True, "prompt_s": seconds[-1], "token_s": singles[1:]}


def decode(context: Any, tokens: list[int]) -> None:
    """Compute tokens behind those before; the last one gives logits."""
    array = (api.llama_token * len(tokens))(*tokens)
    status = api.llama_decode(context, api.llama_batch_get_one(array, len(tokens)))
    if status != 0:
        raise EngineRefusedError(last_words(f"decoding {len(tokens)} tokens gave {status}"))


def _check_vector(context: Any, model: Any) -> None:
    pooling = api.llama_pooling_type(context)
    if pooling == api.LLAMA_POOLING_TYPE_NONE:
        vector = api.llama_get_embeddings_ith(context, -1)
    else:
        vector = api.llama_get_embeddings_seq(context, 0)
    if not vector:
        raise EngineRefusedError("the model gave no vector")
    ranks = pooling == api.LLAMA_POOLING_TYPE_RANK
    size = api.llama_model_n_cls_out(model) if ranks else api.llama_model_n_embd_out(model)
    if not all(math.isfinite(value) for value in vector[:size]):
        raise EngineRefusedError("the model gave a vector that is no usable number")


def _check_logits(context: Any, vocabulary: int) -> list[float]:
    logits = api.llama_get_logits_ith(context, -1)
    if not logits:
        raise EngineRefusedError("decoding gave no logits")
    values: list[float] = logits[:vocabulary]
    if not all(math.isfinite(value) for value in values) or min(values) == max(values):
        raise EngineRefusedError("decoding gave logits that are no usable numbers")
    return values


def _info() -> dict[str, Any]:
    count = _native("ggml_backend_dev_count", ctypes.c_size_t)
    get = _native("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    kind = _native("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    name = _native("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    description = _native("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    devices = [get(index) for index in range(count())]
    return {
        "ok": True,
        "version": llama_cpp.__version__,
        "system_info": api.llama_print_system_info().decode(errors="replace"),
        # Not llama_supports_gpu_offload(): that is also true for a build with only the RPC backend.
        "gpu_offload": any(kind(device) in _GPU_KINDS for device in devices),
        "devices": [
            [name(device).decode(errors="replace"), description(device).decode(errors="replace")]
            for device in devices
        ],
    }


def last_words(what: str) -> str:
    """What failed, with the engine's last warnings."""
    words = [line.strip() for line in _LOG_LINES if line.strip()]
    return f"{what}: {'; '.join(words[-4:])}" if words else what


def read_settings(record: dict[str, Any]) -> EngineSettings:
    """The settings of a request."""
    lists = {name: tuple(record[name]) for name in ("tensor_split", "workers")}
    return EngineSettings(**{**record, **lists})


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    api.llama_log_set(keep_log, ctypes.c_void_p(0))
    api.llama_backend_init()
    mode = request["mode"]
    try:
        if mode == "breakdown":
            return _measure(request["model_path"], [read_settings(s) for s in request["settings"]])
        if mode in ("canary", "self_test"):
            settings = read_settings(request["settings"])
            return _self_test(request["model_path"], settings, tell=mode == "canary")
        if mode == "time":
            return _time(request["model_path"], read_settings(request["settings"]))
        if mode == "info":
            return _info()
    except (EngineRefusedError, WorkerError) as error:
        return {"ok": False, "message": str(error)}
    return {"ok": False, "message": f"unknown mode {mode!r}"}


def be_expendable() -> None:
    """Die with the parent, and be the first to go when memory runs out."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")


def answer_once(respond: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the one request on stdin and exit; what the engine prints goes to stderr."""
    be_expendable()
    request = json.loads(sys.stdin.buffer.read())
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    answer = json.dumps(respond(request)).encode()
    while answer:
        answer = answer[os.write(answer_fd, answer) :]
    # Skip destructors of the native libraries: a crash there would spoil a good answer.
    os._exit(0)


if __name__ == "__main__":
    answer_once(_answer)
