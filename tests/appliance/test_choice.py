"""What is installed, under which name, and what the configuration asks of a load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.choice import Wanted, choose, profile_of, wish_for
from appliance.config import Config
from appliance.errors import RequestError, UnusableModelError
from bundler.format.name import ModelName
from hwprobe.placement import Wish
from tests.appliance.sites import CRAMPED, ROOMY
from tests.fakes.forge import forge, tiny_model

TWO = forge({"Q8_0": tiny_model(1), "F32": tiny_model(2)}).manifest.models[0]


def names(**wanted: object) -> list[tuple[str, str]]:
    choice = choose(TWO, ROOMY, Wish(), Wanted(**wanted))  # type: ignore[arg-type]
    return [(one.name.short(), one.variant.id) for one in choice.installs]


def test_preferred_variant_that_fits_gets_the_name() -> None:
    assert names() == [("demo:latest", "f32")]


def test_variant_asked_for_gets_the_name() -> None:
    assert names(variants=("q8_0",)) == [("demo:latest", "q8_0")]
    assert names(variants=("q8_0", "q8_0")) == [("demo:latest", "q8_0")]


def test_of_several_asked_for_the_best_gets_the_name_and_the_others_tags() -> None:
    expected = [("demo:latest", "f32"), ("demo:q8_0", "q8_0")]
    assert names(variants=("q8_0", "f32")) == expected
    assert names(all_variants=True) == expected


def test_where_nothing_fits_the_smallest_asked_for_gets_the_name() -> None:
    choice = choose(TWO, CRAMPED, Wish(), Wanted(all_variants=True))
    assert choice.placement is None
    assert choice.warning
    assert len(choice.installs) == 2


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(RequestError, match=re.escape("found 'q1'")):
        names(variants=("q1",))


def test_variant_id_that_no_tag_can_hold_gets_a_hyphen() -> None:
    model = forge({"A+B": tiny_model(1), "F32": tiny_model(2)}).manifest.models[0]
    choice = choose(model, ROOMY, Wish(), Wanted(all_variants=True))
    assert choice.installs[1].name.short() == "demo:a-b"


def test_profile_of_another_release_is_refused() -> None:
    from dataclasses import replace

    variant = replace(TWO.variants[0], profile={"surprise": 1})
    with pytest.raises(UnusableModelError) as caught:
        profile_of(variant)
    assert caught.value.hint


def test_configuration_becomes_a_wish(tmp_path: Path) -> None:
    file = tmp_path / "satchel.toml"
    file.write_text(
        "[server]\ncontext_length = 4096\nkv_cache_type = 'q8_0'\n"
        "[model.demo]\ncontext_length = 1024\nnum_gpu = 0\nnum_thread = 3\n"
    )
    config = Config.load(file=file)
    other = wish_for(config, ModelName.parse("other"))
    assert other == Wish(num_ctx=4096, kv_type="q8_0")
    demo = wish_for(config, ModelName.parse("demo"))
    assert demo == Wish(num_ctx=1024, kv_type="q8_0", num_gpu=0, threads=3)
    assert wish_for(Config.load(), ModelName.parse("demo")) == Wish()
