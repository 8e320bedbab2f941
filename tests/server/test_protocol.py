from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprobe.settings import EngineSettings
from server.errors import RunnerCrashedError
from server.runner import protocol
from server.wishes import Constraint, Reasoning, SamplingOptions

NUMBERS = st.integers(0, 1 << 31)
REALS = st.floats(allow_nan=False, allow_infinity=False)
TOKENS = st.lists(NUMBERS, max_size=5).map(tuple)

ENGINE = st.builds(
    EngineSettings,
    num_ctx=st.integers(1, 1 << 20),
    num_gpu=st.integers(0, 99),
    use_mmap=st.booleans(),
    tensor_split=st.lists(REALS, max_size=3).map(tuple),
)
SAMPLING = st.builds(
    SamplingOptions,
    temperature=REALS,
    seed=st.integers(-1, 1 << 63),
    stop=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    logit_bias=st.lists(st.tuples(NUMBERS, REALS), max_size=3).map(tuple),
)
COMMANDS = st.one_of(
    st.builds(
        protocol.Load,
        model_path=st.text(),
        settings=ENGINE,
        adapters=st.lists(st.tuples(st.text(), REALS), max_size=2).map(tuple),
    ),
    st.builds(
        protocol.Generate,
        id=NUMBERS,
        prompt=st.text(),
        tokens=TOKENS,
        sampling=SAMPLING,
        top_logprobs=st.none() | NUMBERS,
        constraint=st.none()
        | st.builds(
            Constraint,
            kind=st.sampled_from(["json", "regex", "gbnf"]),
            source=st.text(),
            begins=st.lists(st.text(), max_size=2).map(tuple),
            reasoning=st.none() | st.builds(Reasoning, open=st.text(), close=st.text()),
        ),
    ),
    st.builds(protocol.Cancel, id=NUMBERS),
    st.builds(protocol.Tokenize, id=NUMBERS, text=st.text(), add_bos=st.booleans()),
    st.builds(protocol.Detokenize, id=NUMBERS, tokens=TOKENS),
)
LOGPROB = st.tuples(st.text(), st.binary().map(bytes.hex), REALS).map(
    lambda entry: [*entry, [list(entry)]]
)
ROWS = st.builds(
    protocol.Row,
    id=NUMBERS,
    text=st.text(),
    tokens=TOKENS,
    logprobs=st.lists(LOGPROB, max_size=2).map(tuple),
    done=st.sampled_from([None, "stop", "length", "cancelled"]),
    prompt_tokens=NUMBERS,
    prompt_s=REALS,
    prompt_ids=TOKENS,
    fault=st.none() | st.text(),
)
EVENTS = st.one_of(
    st.builds(protocol.Progress, fraction=st.floats(0, 1)),
    st.builds(
        protocol.Ready,
        num_ctx=NUMBERS,
        n_vocab=NUMBERS,
        memory=st.dictionaries(st.text(), NUMBERS, max_size=3),
        system_info=st.text(),
    ),
    st.builds(protocol.Failed, message=st.text()),
    st.builds(protocol.Step, n=NUMBERS, rows=st.lists(ROWS, max_size=3).map(tuple)),
    st.builds(protocol.Tokens, id=NUMBERS, tokens=TOKENS),
    st.builds(protocol.Text, id=NUMBERS, text=st.text()),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["op", "ev", "id", "rows", "tokens", "settings", "sampling", "stop"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=10,
)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"5",
        b"[]",
        b"\xff",
        b'{"ev":"unheard of"}',
        b'{"ev":[]}',
        b'{"ev":"failed"}',
        b'{"ev":"failed","message":"x","extra":1}',
        b'{"ev":"step","n":1,"rows":5}',
        b'{"ev":"step","n":1,"rows":["row"]}',
        b'{"ev":"step","n":1,"rows":[{"text":"no id"}]}',
        b'{"ev":"tokens","id":1,"tokens":7}',
        b'{"op":"cancel","id":1}',
    ],
)
def test_line_that_is_no_event_is_a_crash(line: bytes) -> None:
    with pytest.raises(RunnerCrashedError, match="broken line"):
        protocol.decode_event(line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"ev":"failed","message":"x"}',
        b'{"op":"load","model_path":"x","settings":{"num_ctx":0,"tensor_split":[]},"adapters":[]}',
        b'{"op":"load","model_path":"x","settings":7,"adapters":[]}',
        b'{"op":"generate","id":1}',
        b'{"op":"generate","id":1,"sampling":{"stop":[],"logit_bias":[5]}}',
    ],
)
def test_line_that_is_no_command_is_a_crash(line: bytes) -> None:
    with pytest.raises(RunnerCrashedError, match="broken line"):
        protocol.decode_command(line)


@settings(deadline=None, max_examples=200)
@given(COMMANDS)
def test_command_survives_the_wire(command: protocol.Command) -> None:
    line = protocol.encode(command)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert protocol.decode_command(line) == command


@settings(deadline=None, max_examples=200)
@given(EVENTS)
def test_event_survives_the_wire(event: protocol.Event) -> None:
    line = protocol.encode(event)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert protocol.decode_event(line) == event


@settings(deadline=None, max_examples=300)
@given(st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60)))
def test_junk_is_an_event_or_a_crash_and_nothing_else(line: bytes) -> None:
    for decode in (protocol.decode_event, protocol.decode_command):
        try:
            decode(line)
        except RunnerCrashedError as error:
            assert len(str(error)) < 1000  # noqa: PT017 - either outcome is right
