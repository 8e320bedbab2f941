"""Answers bound by each API: what was left out is told, strict refuses, grammars bind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from server.chat import ChatRequest
from server.chunks import FinishChunk, Usage
from tests.functional.live import LiveServer, put_model

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
SKY: Any = [{"role": "user", "content": "Why is the sky blue?"}]
LOOSE = {
    "type": "object",
    "properties": {"blue": {"type": "boolean", "not": {"const": True}}},
    "required": ["blue"],
    "additionalProperties": False,
}
"""``not`` is left out, so that ``true`` may come and does not fit."""

YES_OR_NO = 'root ::= "yes" | "no"'
ALOUD: Any = {"temperature": 5.0, "top_p": 1.0, "reasoning_effort": "none"}
"""Hot enough that seeds tell: the demo model is sure of itself."""
GREEDY: Any = {"temperature": 0, "num_predict": 60}

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("structured")
    with LiveServer(folder, engine=True) as live:
        put_model(live.store, "demo", folder, weights=DEMO.read_bytes())
        yield live


@pytest.fixture
def compatible(demo: LiveServer) -> Iterator[openai.OpenAI]:
    address = f"http://127.0.0.1:{demo.port}/v1"
    with openai.OpenAI(base_url=address, api_key="unused", max_retries=0) as client:
        yield client


def schema_format(*, strict: bool) -> Any:
    form = {"name": "sky", "schema": LOOSE, "strict": strict}
    return {"type": "json_schema", "json_schema": form}


def ask(demo: LiveServer, path: str, **body: Any) -> tuple[int, dict[str, str], bytes]:
    connection = demo.connect()
    try:
        connection.request("POST", path, json.dumps({"model": "demo", **body}))
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, headers, response.read()
    finally:
        connection.close()


def right(told: dict[str, Any], text: str) -> bool:
    """Whether a check says what is so."""
    blue = json.loads(text)["blue"]
    expected: dict[str, Any] = {"relaxed": ["not"], "valid": not blue}
    if blue:
        expected["error"] = "$.blue: not"
    return told == expected


class TestWhatWasLeftOut:
    def test_ollama_whole(self, demo: LiveServer) -> None:
        status, headers, body = ask(
            demo, "/api/chat", messages=SKY, format=LOOSE, options=GREEDY, think=False, stream=False
        )
        answer = json.loads(body)
        assert status == 200
        assert right(answer["schema_check"], answer["message"]["content"])
        assert json.loads(headers["x-schema-check"]) == answer["schema_check"]

    def test_ollama_stream(self, demo: LiveServer) -> None:
        _status, headers, body = ask(
            demo, "/api/generate", prompt="Is the sky blue?", format=LOOSE, options=GREEDY
        )
        records = [json.loads(line) for line in body.splitlines()]
        text = "".join(record["response"] for record in records)
        assert [record for record in records if "schema_check" in record] == records[-1:]
        assert right(records[-1]["schema_check"], text)
        assert "x-schema-check" not in headers

    def test_openai(self, compatible: openai.OpenAI) -> None:
        fields: Any = {"model": "demo", "messages": SKY, "max_tokens": 60, "temperature": 0}
        form = schema_format(strict=False)
        whole = compatible.chat.completions.create(**fields, response_format=form)
        text = whole.choices[0].message.content or ""
        assert right(whole.choices[0].model_dump()["schema_check"], text)
        stream = compatible.chat.completions.create(**fields, response_format=form, stream=True)
        last = [chunk for chunk in stream if chunk.choices][-1]
        assert right(last.choices[0].model_dump()["schema_check"], text)

    def test_responses(self, compatible: openai.OpenAI) -> None:
        form: Any = {"format": {"type": "json_schema", "name": "sky", "schema": LOOSE}}
        said = compatible.responses.create(model="demo", input="Is it?", text=form)
        assert right(said.model_dump()["schema_check"], said.output_text)

    def test_anthropic(self, demo: LiveServer) -> None:
        address = f"http://127.0.0.1:{demo.port}"
        with anthropic.Anthropic(base_url=address, api_key="unused", max_retries=0) as client:
            said = client.messages.create(
                model="demo",
                max_tokens=60,
                messages=SKY,
                extra_body={"output_config": {"format": {"type": "json_schema", "schema": LOOSE}}},
            )
        (block,) = said.content
        assert block.type == "text"
        assert right(said.model_dump()["schema_check"], block.text)

    def test_cut_answer_does_not_fit(self, demo: LiveServer) -> None:
        options = {**GREEDY, "num_predict": 2}
        _status, _headers, body = ask(
            demo, "/api/generate", prompt="x", format=LOOSE, options=options, stream=False
        )
        told = json.loads(body)["schema_check"]
        assert told == {"relaxed": ["not"], "valid": False, "error": "the answer is not JSON"}

    def test_nothing_is_said_where_all_is_enforced(self, demo: LiveServer) -> None:
        enforced = {"type": "object", "properties": {"blue": {"type": "boolean"}}}
        _status, headers, body = ask(
            demo, "/api/generate", prompt="x", format=enforced, options=GREEDY, stream=False
        )
        assert "schema_check" not in json.loads(body)
        assert "x-schema-check" not in headers


class TestStrict:
    def test_openai_strict_is_refused_with_the_keyword(self, compatible: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="cannot be enforced: not"):
            compatible.chat.completions.create(
                model="demo", messages=SKY, response_format=schema_format(strict=True)
            )

    def test_ollama_option_is_refused_with_the_keyword(self, demo: LiveServer) -> None:
        with (
            ollama.Client(host=f"http://127.0.0.1:{demo.port}") as client,
            pytest.raises(ollama.ResponseError, match="cannot be enforced: not") as refused,
        ):
            client.generate("demo", "x", format=LOOSE, options={"strict_format": True})
        assert refused.value.status_code == 400


class TestGrammars:
    @pytest.mark.parametrize(
        "form",
        [
            {"type": "regex", "pattern": "yes|no"},
            {"type": "grammar", "grammar": YES_OR_NO},
            {"type": "grammar", "syntax": "gbnf", "definition": YES_OR_NO},
            {"type": "grammar", "syntax": "lark", "definition": 'start: "yes" | "no"'},
            {"type": "grammar", "syntax": "regex", "definition": "yes|no"},
        ],
    )
    def test_openai_response_format(self, compatible: openai.OpenAI, form: Any) -> None:
        said = compatible.chat.completions.create(
            model="demo", messages=SKY, reasoning_effort="none", response_format=form
        )
        assert said.choices[0].message.content in ("yes", "no")

    def test_grammar_beside_the_fields(self, demo: LiveServer) -> None:
        for path, told in (
            ("/v1/chat/completions", {"messages": SKY}),
            ("/v1/completions", {"prompt": "Is it?"}),
            ("/api/generate", {"prompt": "Is it?", "stream": False, "think": False}),
        ):
            status, _headers, body = ask(demo, path, grammar=YES_OR_NO, **told)
            assert status == 200
            assert re.search(rb'"(content|text|response)":"(yes|no)"', body), path

    @pytest.mark.parametrize(
        "options",
        [{"regex": "yes|no"}, {"lark": 'start: "yes" | "no"'}, {"grammar": YES_OR_NO}],
    )
    def test_options(self, demo: LiveServer, options: Any) -> None:
        with ollama.Client(host=f"http://127.0.0.1:{demo.port}") as client:
            said = client.chat("demo", SKY, options=options, think=False)
        assert said.message.content in ("yes", "no")

    def test_malformed_grammar_is_refused(self, demo: LiveServer) -> None:
        status, _headers, body = ask(demo, "/api/generate", prompt="x", grammar="root ::= (")
        assert status == 400
        assert b"gbnf" in body

    def test_two_are_refused(self, demo: LiveServer) -> None:
        options = {"regex": "x"}
        status, _headers, body = ask(
            demo, "/api/generate", prompt="x", format="json", options=options
        )
        assert (status, json.loads(body)) == (
            400, {"error": "expected one of format and regex, found 2"},
        )  # fmt: skip


class TestChoices:
    def test_whole(self, compatible: openai.OpenAI) -> None:
        said = compatible.chat.completions.create(
            model="demo", messages=SKY, n=3, seed=1, max_tokens=12, **ALOUD
        )
        texts = [choice.message.content for choice in said.choices]
        assert [choice.index for choice in said.choices] == [0, 1, 2]
        assert len(set(texts)) == 3
        assert said.usage is not None
        assert said.usage.completion_tokens == 36

    def test_stream(self, compatible: openai.OpenAI) -> None:
        stream = compatible.chat.completions.create(
            model="demo",
            messages=SKY,
            n=2,
            max_tokens=8,
            temperature=0,
            reasoning_effort="none",
            stream=True,
            stream_options={"include_usage": True},
        )
        texts, ends = ["", ""], []
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                ends += [choice.index] if choice.finish_reason else []
            usage = chunk.usage
        assert texts[0] == texts[1] != ""
        assert sorted(ends) == [0, 1]
        assert usage is not None
        assert usage.completion_tokens == 16

    def test_prompt_is_computed_once(self, demo: LiveServer, compatible: openai.OpenAI) -> None:
        """All answers but one find the whole prompt computed, but for its last token."""
        finishes: list[Usage] = []
        long: Any = [{"role": "user", "content": "Tell me about these numbers: " + "7 3 " * 40}]
        answer = demo.answerer.chat

        def listening(request: ChatRequest, gone: Any) -> Any:
            for chunk in answer(request, gone):
                if isinstance(chunk, FinishChunk):
                    finishes.append(chunk.usage)
                yield chunk

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo.answerer, "chat", listening)
            compatible.chat.completions.create(model="demo", messages=long, n=6, max_tokens=4)
        whole = finishes[0].prompt_tokens
        computed = sorted(usage.prompt_tokens - usage.cached_tokens for usage in finishes)
        assert computed[:-1] == [1] * 5
        assert computed[-1] <= whole

    def test_bound_answers_are_checked_each(self, compatible: openai.OpenAI) -> None:
        raw = compatible.chat.completions.with_raw_response.create(
            model="demo", messages=SKY, n=2, response_format=schema_format(strict=False)
        )
        told = json.loads(raw.headers["x-schema-check"])
        choices = raw.parse().choices
        assert [choice.model_dump()["schema_check"] for choice in choices] == told
        assert len(told) == 2
