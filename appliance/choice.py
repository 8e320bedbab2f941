"""Which variants of a model are installed, and under which names. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from appliance.config import Config
from appliance.errors import ModelTooLargeError, RequestError, UnusableModelError
from bundler.format.errors import FormatError
from bundler.format.manifest import Model, Variant
from bundler.format.name import ModelName
from hwprobe.errors import DoesNotFitError, GgufError
from hwprobe.gguf import ModelProfile
from hwprobe.machine import Machine
from hwprobe.placement import Candidate, Placement, Wish, place
from hwprobe.settings import KvType

_NOT_IN_A_TAG = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the operator asked for beyond "what fits best".

    Attributes:
        variants: ids to install; empty leaves the choice to placement.
        all_variants: install every variant.
        models: of a bundle with several models only these; empty means all.
    """

    variants: tuple[str, ...] = ()
    all_variants: bool = False
    models: tuple[ModelName, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """One variant and the name it gets."""

    name: ModelName
    variant: Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is installed of one model.

    Attributes:
        model: the signed entry.
        installs: the first gets the model's own name, others ``name:<variant id>``.
        placement: how the first would run here; ``None`` if it does not fit and was asked for.
        warning: why the operator should think twice, or empty.
    """

    model: Model
    installs: tuple[Install, ...]
    placement: Placement | None
    warning: str = ""


def wish_for(config: Config, name: ModelName) -> Wish:
    """What the configuration asks of a model's load; the rest is left to placement."""
    own = config.model(name)
    kv_type = own.kv_cache_type or config.server.kv_cache_type
    return Wish(
        num_ctx=own.context_length or config.server.context_length or None,
        slots=own.num_parallel or config.server.num_parallel or None,
        kv_type=cast("KvType", kv_type) if kv_type else None,
        num_gpu=own.num_gpu,
        threads=own.num_thread or None,
        num_batch=None,
        use_mmap=None,
    )


def profile_of(variant: Variant) -> ModelProfile:
    """The signed profile of a variant.

    Raises:
        UnusableModelError: it is not one this release knows.
    """
    try:
        return ModelProfile.from_json(variant.profile)
    except GgufError as error:
        raise UnusableModelError(
            f"variant {variant.id}: profile: {error}", hint="update satchel on this machine first"
        ) from error


def choose(model: Model, machine: Machine, wish: Wish, wanted: Wanted) -> Choice:
    """Decide what to install of one model.

    Raises:
        RequestError: a variant was asked for that the model does not have.
        ModelTooLargeError: nothing fits, and nothing was asked for by name.
        UnusableModelError: a signed profile is not usable.
    """
    asked = _asked(model, wanted)
    by_hand = bool(wanted.variants) or wanted.all_variants
    try:
        placement = place(machine, [_candidate(variant) for variant in asked], wish)
    except DoesNotFitError as error:
        if not by_hand:
            raise ModelTooLargeError(
                f"{model.name.short()}: {error}",
                hint=error.hint or "--variant ID imports one all the same",
            ) from error
        smallest = min(asked, key=lambda variant: profile_of(variant).file_size_bytes)
        return Choice(
            model=model,
            installs=_installs(model, smallest, asked),
            placement=None,
            warning=f"{smallest.id} does not fit this machine: {error}",
        )
    first = next(variant for variant in asked if variant.id == placement.variant)
    return Choice(
        model=model,
        installs=_installs(model, first, asked if by_hand else (first,)),
        placement=placement,
    )


def _asked(model: Model, wanted: Wanted) -> tuple[Variant, ...]:
    if wanted.all_variants or not wanted.variants:
        return model.variants
    have = {variant.id: variant for variant in model.variants}
    for variant_id in wanted.variants:
        if variant_id not in have:
            raise RequestError(
                f"variant: expected one of {', '.join(have)}, found {variant_id!r}",
                hint=f"{model.name.short()} has these variants only",
            )
    return tuple(have[variant_id] for variant_id in dict.fromkeys(wanted.variants))


def _candidate(variant: Variant) -> Candidate:
    return Candidate(variant=variant.id, profile=profile_of(variant), prefer=variant.prefer)


def _installs(model: Model, first: Variant, asked: Sequence[Variant]) -> tuple[Install, ...]:
    others = (variant for variant in asked if variant is not first)
    return (
        Install(name=model.name, variant=first),
        *(Install(name=_tagged(model.name, variant), variant=variant) for variant in others),
    )


def _tagged(name: ModelName, variant: Variant) -> ModelName:
    """``name:<variant id>``; what a tag cannot hold becomes a hyphen."""
    tag = _NOT_IN_A_TAG.sub("-", variant.id)[:80]
    try:
        return replace(name, tag=tag)
    except FormatError as error:
        raise UnusableModelError(f"variant {variant.id}: {error}") from error
