from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import BadRequestError
from server.options import OPTIONS, UNUSED, resolve_constraint, resolve_options
from server.wishes import Constraint, LoadOptions, SamplingOptions


def sampling(**request: Any) -> SamplingOptions:
    return resolve_options({}, request)[0]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("temperature", "hot", 'option "temperature" must be of type float32'),
        ("temperature", True, 'option "temperature" must be of type float32'),
        ("top_k", "many", 'option "top_k" must be of type integer'),
        ("top_k", [1], 'option "top_k" must be of type integer'),
        ("seed", False, 'option "seed" must be of type integer'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("use_mmap", "yes", 'option "use_mmap" must be of type boolean'),
        ("stop", "END", 'option "stop" must be of type array'),
        ("stop", ["END", 3], 'option "stop" must be of an array of strings'),
        ("num_ctx", 0, 'option "num_ctx" must be between 1 and'),
        ("num_ctx", 1 << 40, 'option "num_ctx" must be between 1 and'),
        ("num_gpu", -2, 'option "num_gpu" must be between -1 and'),
        ("repeat_penalty", 0, 'option "repeat_penalty" must be more than 0'),
        ("repeat_penalty", -1, 'option "repeat_penalty" must be between 0 and'),
        ("num_predict", 10**400, 'option "num_predict" must be of type integer'),
        ("temperature", 10**400, 'option "temperature" must be of type float32'),
        ("temperature", -(10**400), 'option "temperature" must be of type float32'),
        ("logit_bias", {"1": 10**400}, 'option "logit_bias" must be an object'),
        ("logit_bias", {"1": float("inf")}, 'option "logit_bias" must be an object'),
        ("temperature", float("inf"), 'option "temperature" must be of type float32'),
        ("logit_bias", [], 'option "logit_bias" must be an object'),
        ("logit_bias", {"a": 1}, 'option "logit_bias" must be an object'),
        ("logit_bias", {"1": "x"}, 'option "logit_bias" must be an object'),
    ],
)
def test_wrong_option_is_refused_in_ollamas_words(name: str, value: object, text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        resolve_options({}, {name: value})
    assert str(caught.value).startswith(text)
    assert caught.value.status == 400


def test_defaults_are_ollamas() -> None:
    assert resolve_options({}, {}) == (SamplingOptions(), LoadOptions())


def test_request_lies_over_model_over_default() -> None:
    options, load = resolve_options(
        {"temperature": 0.5, "top_k": 10, "num_ctx": 2048, "stop": ["a", "b"]},
        {"temperature": 0, "stop": ["c"]},
    )
    assert (options.temperature, options.top_k, options.top_p) == (0.0, 10, 0.9)
    assert options.stop == ("c",)
    assert load.num_ctx == 2048


def test_null_and_unknown_options_are_passed_over() -> None:
    assert sampling(temperature=None, colour="red", numa=True, main_gpu="x") == SamplingOptions()


def test_integers_in_float_form_are_cut() -> None:
    assert sampling(top_k=2.0).top_k == 2
    assert sampling(top_k=2.7).top_k == 2


@pytest.mark.parametrize(
    ("given_seed", "used"),
    [
        (-1, -1),
        (0, 0),
        (42, 42),
        (1 << 32, 0),
        ((1 << 32) - 1, -1),
        ((1 << 53) + 5, 5),
        (-2, 4294967294),
    ],
)
def test_seed_is_brought_into_32_bits(given_seed: int, used: int) -> None:
    assert sampling(seed=given_seed).seed == used


def test_logit_bias_is_pairs_of_token_and_bias() -> None:
    assert sampling(logit_bias={"15": -100, "7": 0.5}).logit_bias == ((15, -100.0), (7, 0.5))


def test_tiny_context_is_raised_to_four() -> None:
    assert resolve_options({}, {"num_ctx": 1})[1].num_ctx == 4


def test_every_field_has_an_option() -> None:
    fields = set(SamplingOptions.__slots__) | set(LoadOptions.__slots__)
    assert set(OPTIONS) == fields
    assert not UNUSED & set(OPTIONS)


@settings(deadline=None, max_examples=300)
@given(
    request=st.dictionaries(
        st.sampled_from(sorted(OPTIONS)),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
        | st.lists(st.text(max_size=3) | st.integers(), max_size=3)
        | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        max_size=4,
    )
)  # fmt: skip
def test_any_options_are_taken_or_refused(request: dict[str, Any]) -> None:
    try:
        options, load = resolve_options({}, request)
    except BadRequestError:
        return
    assert -1 <= options.seed < (1 << 32)
    assert load.num_ctx is None or load.num_ctx >= 4


class TestConstraintOfOptions:
    @pytest.mark.parametrize(
        ("constraint", "options", "text"),
        [
            (None, {"grammar": 3}, 'option "grammar" must be of type string'),
            (None, {"strict_format": "yes"}, 'option "strict_format" must be of type boolean'),
            (None, {"grammar": "a", "lark": "b"}, "expected one of grammar and lark, found 2"),
            (Constraint(kind="json"), {"regex": "a"}, "expected one of format and regex, found 2"),
        ],
    )
    def test_wrong_options_are_refused(
        self, constraint: Constraint | None, options: dict[str, Any], text: str
    ) -> None:
        with pytest.raises(BadRequestError) as refused:
            resolve_constraint(constraint, options)
        assert str(refused.value) == text

    def test_options_bind(self) -> None:
        assert resolve_constraint(None, {}) is None
        assert resolve_constraint(None, {"grammar": "", "strict_format": True}) is None
        assert resolve_constraint(None, {"grammar": "a"}) == Constraint(kind="gbnf", source="a")
        assert resolve_constraint(None, {"regex": "a"}) == Constraint(kind="regex", source="a")
        schema = Constraint(kind="json_schema", source="{}")
        assert resolve_constraint(schema, {"grammar": None}) == schema
        assert resolve_constraint(schema, {"strict_format": True}) == replace(schema, strict=True)
