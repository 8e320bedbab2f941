"""The profile of a model with all that is loaded beside it: adapters, a projector, a draft."""

from __future__ import annotations

import functools
from pathlib import Path

from hwprobe.adapter import adapted, check_adapter
from hwprobe.draft import check_draft, drafted
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.projector import check_projector, projected, sees


@functools.lru_cache(maxsize=64)
def profile_together(
    model_path: Path, adapters: tuple[Path, ...], projector: Path | None, draft: Path | None
) -> ModelProfile:
    """What is to be placed. Cached by path: files must not change under their names.

    Raises:
        AdapterError, ProjectorError, DraftError: one of them does not go with the model.
        GgufError: a file is no usable GGUF.
        OSError: a file cannot be read.
    """
    header = read_header(model_path)
    headers = [read_header(path) for path in adapters]
    for one in headers:
        check_adapter(one, header)
    profile = adapted(model_profile(header), headers)
    if projector is not None:
        eyes = read_header(projector)
        check_projector(eyes, header)
        profile = projected(profile, eyes)
    if draft is not None:
        small = read_header(draft)
        check_draft(small, header)
        profile = drafted(profile, small)
    return profile


@functools.lru_cache(maxsize=256)
def can_see(projector: Path) -> bool:
    """Whether this engine's server shows images through it; cached as above.

    Raises:
        GgufError, OSError: a file is not usable.
    """
    return sees(read_header(projector))
