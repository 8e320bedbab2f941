"""GGUF files: the header reader and the profile drawn from it, under one name."""

from __future__ import annotations

from hwprobe.errors import GgufError
from hwprobe.gguf_reader import GgufArray, GgufHeader, GgufValue, read_header
from hwprobe.gguf_tensors import TensorInfo
from hwprobe.profile import ModelProfile, model_profile

__all__ = [
    "GgufArray",
    "GgufError",
    "GgufHeader",
    "GgufValue",
    "ModelProfile",
    "TensorInfo",
    "model_profile",
    "read_header",
]
