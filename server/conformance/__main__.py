"""Check one text against one schema: a child process. Run as ``python -P -m server.conformance``.

One JSON object on stdin, ``{"schema", "answer"}``, both texts; one on stdout, ``{"valid",
"error"}``. Whatever goes wrong ends the process with a status that is not zero. It is bounded in
processor time and memory, fetches nothing, and dies with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

from jsonschema.validators import Draft202012Validator, validator_for
from jsonschema_specifications import REGISTRY

CPU_S = 2
"""Why: answers take milliseconds; an expression with exponentially many ways takes for ever."""

MEMORY_BYTES = 1 << 30
"""Of address space. Why: some hundred times the largest answer that is checked."""

_PR_SET_PDEATHSIG = 1


def verdict(schema_text: str, answer: str) -> dict[str, Any]:
    """Whether a text is JSON and fits; the error names the place and the keyword, no content."""
    schema = json.loads(schema_text)
    try:
        value = json.loads(answer, parse_constant=_refuse)
    except ValueError:
        return {"valid": False, "error": "the answer is not JSON"}
    kind = validator_for(schema, default=Draft202012Validator)
    # With this registry, references lead into the schema or to the meta-schemas; else they fail.
    validator = kind(schema, registry=REGISTRY, format_checker=kind.FORMAT_CHECKER)
    error = next(validator.iter_errors(value), None)
    if error is None:
        return {"valid": True, "error": ""}
    return {"valid": False, "error": f"{error.json_path}: {error.validator}"}


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def main() -> None:
    """Read the request, answer it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = json.load(sys.stdin)
    os.write(1, json.dumps(verdict(request["schema"], request["answer"])).encode())


if __name__ == "__main__":
    main()
