"""Child process: write a quantized copy of a GGUF file with the engine's own function.

    python -m bench.quantize SOURCE TARGET Q4_0|Q8_0

A process of its own because the engine may abort.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp

FILE_TYPES = {
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}


def main() -> int:
    """Quantize; 0 on success."""
    source, target, file_type = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    # Every matrix in the one type, the embedding too: then the size tells the arithmetic.
    params.pure = True
    return int(
        llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    )


if __name__ == "__main__":
    sys.exit(main())
