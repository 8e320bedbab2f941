"""OpenAI's legacy completions: bodies in, objects out; several answers in one response."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import falcon
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.body import Fields
from server.api.choices import AT_ONCE, Several, Start, deliver_choices
from server.api.completions_parse import Completion, parse_completion
from server.api.completions_write import CompletionWriter
from server.api.delivery import Chunks, Gone, WholeAnswer
from server.chunks import (
    Chunk,
    FaultChunk,
    FinishChunk,
    FinishReason,
    TextChunk,
    ThinkingChunk,
    TokenLogprob,
    Usage,
)
from server.errors import BadRequestError, ServerError


def parse(**values: Any) -> Completion:
    return parse_completion(Fields(values={"model": "m", "prompt": "p", **values}))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"prompt": 3}, "prompt: expected string, found number"),
        ({"prompt": {}}, "prompt: expected string, found object"),
        ({"prompt": []}, "prompt: expected at least one prompt, found none"),
        ({"prompt": [[]]}, "prompt[0]: expected at least one token id, found none"),
        ({"prompt": [1, -2]}, "prompt[1]: expected token id, found -2"),
        ({"prompt": [1, "a"]}, "prompt[1]: expected token id, found 'a'"),
        ({"prompt": [[1.5]]}, "prompt[0][0]: expected token id, found 1.5"),
        ({"prompt": ["a", None]},
         "prompt[1]: expected string or array of token ids, found null"),
        ({"prompt": [True]}, "prompt[0]: expected string or array of token ids, found boolean"),
        ({"prompt": [1], "suffix": "x"}, "suffix: expected a text prompt, found token ids"),
        ({"prompt": [1], "echo": True}, "echo: expected a text prompt, found token ids"),
        ({"prompt": ["a"] * 33, "n": 64}, "prompt: expected at most 2048 answers, found 2112"),
        ({"stop": ["a", 3]}, "invalid type for 'stop' field: float64"),
        ({"stop": ["a", None]}, "invalid type for 'stop' field: <nil>"),
        ({"stop": [True]}, "invalid type for 'stop' field: bool"),
        ({"stop": [[]]}, "invalid type for 'stop' field: []interface {}"),
        ({"stop": [{}]}, "invalid type for 'stop' field: map[string]interface {}"),
        ({"stop": 3}, "stop: expected array, found number"),
        ({"logprobs": True}, "logprobs: expected integer, found boolean"),
        ({"logprobs": 21}, "logprobs must be between 0 and 20"),
        ({"logprobs": 1, "echo": True},
         "logprobs: expected none with echo, because prompts have no log-probabilities here"),
        ({"n": 0}, "n: expected 1 to 128, found 0"),
        ({"n": 129}, "n: expected 1 to 128, found 129"),
        ({"n": 2, "best_of": 1}, "best_of: expected at least n, which is 2, found 1"),
        ({"best_of": 2, "stream": True}, "best_of: expected n in a stream, found more"),
        ({"max_tokens": "9"}, "max_tokens: expected integer, found string"),
    ],
)  # fmt: skip
def test_body_of_wrong_shape_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(**values)
    assert str(caught.value) == text


def test_names_become_ollamas() -> None:
    (request,) = parse(
        suffix="s", max_tokens=5, temperature=0.1, stop="X", seed=3, logit_bias={"7": 1}, logprobs=2
    ).requests
    assert (request.prompt, request.suffix, request.top_logprobs) == ("p", "s", 2)
    assert request.options == {
        "num_predict": 5,
        "temperature": 0.1,
        "stop": ["X"],
        "seed": 3,
        "logit_bias": {"7": 1},
    }
    assert request.think is False
    assert not request.raw
    assert not request.stream


@pytest.mark.parametrize(
    ("prompt", "texts", "tokens"),
    [
        ("a", ["a"], [()]),
        (None, [""], [()]),
        (["a", "b"], ["a", "b"], [(), ()]),
        ([1, 2], [""], [(1, 2)]),
        ([[1, 2], "c", [3]], ["", "c", ""], [(1, 2), (), (3,)]),
    ],
)
def test_prompts_may_be_texts_and_tokens(
    prompt: Any, texts: list[str], tokens: list[tuple[int, ...]]
) -> None:
    requests = parse(prompt=prompt).requests
    assert [request.prompt for request in requests] == texts
    assert [request.tokens for request in requests] == tokens
    assert [request.raw for request in requests] == [bool(ids) for ids in tokens]


def test_answers_to_one_prompt_have_their_own_seeds() -> None:
    requests = parse(prompt=["a", "b"], n=2, seed=7).requests
    assert [(one.prompt, one.options["seed"]) for one in requests] == [
        ("a", 7),
        ("a", 8),
        ("b", 7),
        ("b", 8),
    ]
    assert all("seed" not in one.options for one in parse(n=2).requests)


USAGE = Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2)
FINISH = FinishChunk(reason=FinishReason.STOP, usage=USAGE)
TEXT = TextChunk(
    text="ab",
    logprobs=(
        TokenLogprob(token="a", token_bytes=b"a", logprob=-0.5, top=(("a", b"a", -0.5),)),
        TokenLogprob(token="b", token_bytes=b"b", logprob=float("-inf")),
    ),
)


def writer(**values: Any) -> CompletionWriter:
    return CompletionWriter(parse(**values), id="cmpl-1", created_s=7)


def events(data: bytes) -> list[Any]:
    records = [record.removeprefix(b"data: ") for record in data.split(b"\n\n")[:-1]]
    assert records[-1] == b"[DONE]"
    return [json.loads(record) for record in records[:-1]]


def test_stream_names_the_answer_of_each_chunk() -> None:
    out = writer(n=2, echo=True, stream_options={"include_usage": True})
    data = b"".join(
        record
        for index, chunk in (
            (1, ThinkingChunk(text="t")),
            (0, TEXT),
            (1, FINISH),
            (0, TextChunk(text="c")),
            (0, FINISH),
        )
        for record in out.write(index, chunk)
    )
    told = events(data + b"".join(out.end()))
    choices = [event["choices"][0] for event in told[:-1]]
    assert [(one["index"], one["text"], one["finish_reason"]) for one in choices] == [
        (1, "p", None),
        (0, "p", None),
        (0, "ab", None),
        (1, "", "stop"),
        (0, "c", None),
        (0, "", "stop"),
    ]
    assert told[-1]["choices"] == []
    assert told[-1]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert {(event["id"], event["created"], event["object"]) for event in told} == {
        ("cmpl-1", 7, "text_completion")
    }


def test_log_probabilities_have_the_legacy_form() -> None:
    out = writer(logprobs=1)
    list(out.write(0, TextChunk(text="xyz")))
    (event,) = events(b"".join(out.write(0, TEXT)) + b"data: [DONE]\n\n")
    assert event["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"a": -0.5}, None],
        "text_offset": [3, 4],
    }


def answer(text: str, logprob: float) -> WholeAnswer:
    entry = TokenLogprob(token=text, token_bytes=text.encode(), logprob=logprob)
    return WholeAnswer(text=text, thinking="", calls=(), logprobs=(entry,), finish=FINISH)


def test_likeliest_of_several_answers_are_told() -> None:
    out = writer(prompt=["p", "q"], n=1, best_of=2, echo=True)
    body = out.whole([answer("a", -2), answer("b", -1), answer("c", -1), answer("d", -3)])
    assert [(one["index"], one["text"]) for one in body["choices"]] == [(0, "pb"), (1, "qc")]
    assert all(one["logprobs"] is None for one in body["choices"])
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 8


def saying(*texts: str, fault: bool = False, error: Exception | None = None) -> Start:
    def start(_gone: Gone) -> Chunks:
        for text in texts:
            yield TextChunk(text=text)
        if error is not None:
            raise error
        yield FaultChunk(message="it broke") if fault else FINISH

    return start


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.sampled_from(["a", "b"]), max_size=4), min_size=1, max_size=20))
def test_every_answer_is_told_whole_and_in_its_order(texts: list[list[str]]) -> None:
    told: list[list[Chunk]] = [[] for _ in texts]
    for index, chunk in Several([saying(*words) for words in texts], bool):
        told[index].append(chunk)
    assert told == [[*(TextChunk(text=word) for word in words), FINISH] for words in texts]


def endless(ended: list[int]) -> Callable[[Gone], Chunks]:
    def start(gone: Gone) -> Chunks:
        try:
            while not gone():
                yield TextChunk(text="x")
        finally:
            ended.append(1)

    return start


def test_closing_ends_every_answer() -> None:
    before = threading.active_count()
    ended: list[int] = []
    several = Several([endless(ended)] * (2 * AT_ONCE), bool)
    next(several)
    several.close()
    assert len(ended) == AT_ONCE
    assert threading.active_count() == before
    several.close()


@pytest.mark.parametrize("stream", [False, True])
def test_failure_before_the_first_words_is_a_status(*, stream: bool) -> None:
    for bad in (saying(error=BadRequestError("no")), saying(fault=True)):
        with pytest.raises(ServerError, match=r"no|it broke"):
            deliver_choices(falcon.Response(), [bad], writer(), gone=bool, stream=stream)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (saying("a", fault=True), "it broke"),
        (saying("a", error=ServerError("no")), "no"),
        (saying("a", error=ValueError("secret")), "internal server error"),
    ],
)
def test_failure_in_the_stream_ends_it_visibly(bad: Start, text: str) -> None:
    resp = falcon.Response()
    ended: list[int] = []
    deliver_choices(resp, [endless(ended), bad], writer(n=2), gone=bool, stream=True)
    stream: Any = resp.stream
    told = events(b"".join(stream))
    stream.close()
    assert told[-1]["error"]["message"] == text
    assert ended == [1]


def test_failure_of_one_whole_answer_fails_the_response() -> None:
    ended: list[int] = []
    starts = [endless(ended), saying("a", fault=True)]
    with pytest.raises(ServerError, match="it broke"):
        deliver_choices(falcon.Response(), starts, writer(n=2), gone=bool, stream=False)
    assert ended == [1]
