"""The table of tensor types equals the engine's own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hwprobe.ggml_types import GGML_TYPES, GGML_TYPES_BY_NAME

_ASK = """
import ctypes, json, sys
from llama_cpp import llama_cpp
lib = llama_cpp._lib
lib.ggml_type_name.restype = ctypes.c_char_p
lib.ggml_type_size.restype = ctypes.c_size_t
lib.ggml_blck_size.restype = ctypes.c_int64
print(json.dumps([
    [number, lib.ggml_type_name(number).decode(), lib.ggml_blck_size(number),
     lib.ggml_type_size(number)] for number in range(43)
]))
"""


@pytest.mark.engine
def test_tensor_types_equal_the_engines() -> None:
    answer = subprocess.run(
        [sys.executable, "-P", "-c", _ASK], capture_output=True, check=True, timeout=60
    )
    theirs = {
        number: (name.upper(), block, size)
        for number, name, block, size in json.loads(answer.stdout.splitlines()[-1])
        if size
    }
    ours = {n: (kind.name, kind.block_size, kind.block_bytes) for n, kind in GGML_TYPES.items()}
    assert ours == theirs


def test_names_are_unique() -> None:
    assert len(GGML_TYPES_BY_NAME) == len(GGML_TYPES)


def test_row_of_q4_k_has_144_bytes_per_256_elements() -> None:
    assert GGML_TYPES_BY_NAME["Q4_K"].row_bytes(4096) == 16 * 144
