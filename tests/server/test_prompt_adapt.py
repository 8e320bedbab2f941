"""Conversations in the words of templates, which are of the shapes that models have published."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat import Message, ToolCall
from server.prompt.abilities import Capabilities, probe
from server.prompt.adapt import adapt, short_id
from server.prompt.guard import Guard
from server.prompt.jinja import JinjaTemplate, TemplateRefusedError
from server.prompt.render import Renderer

TAKE_TURNS = (
    "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}"
    "{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) -%}"
    "{%- if (m.role == 'user') != (ns.n % 2 == 0) -%}"
    "{{- raise_exception('roles must alternate') -}}{%- endif -%}"
    "{%- set ns.n = ns.n + 1 -%}{%- endif -%}{%- endfor -%}"
)
MISTRAL = (
    "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}"
    "{%- set messages = messages[1:] -%}{%- endif -%}" + TAKE_TURNS + "{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}[INST]{{ system + ' ' if loop.first and system }}{{ m.content }}"
    "[/INST]"
    "{%- elif m.tool_calls -%}[TOOL_CALLS][{%- for c in m.tool_calls -%}"
    "{%- if c.id | length != 9 -%}{{- raise_exception('ids have 9 characters') -}}{%- endif -%}"
    '{{- c.function | tojson }}|{{ c.id }}{{ ", " if not loop.last }}{%- endfor -%}]</s>'
    "{%- elif m.role == 'assistant' -%}{{ m.content }}</s>"
    "{%- elif m.role == 'tool' -%}"
    "{%- if m.tool_call_id is not defined or m.tool_call_id | length != 9 -%}"
    "{{- raise_exception('ids have 9 characters') -}}{%- endif -%}"
    "[RESULT]{{ m.content }}|{{ m.tool_call_id }}[/RESULT]"
    "{%- else -%}{{- raise_exception('no such role') -}}{%- endif -%}{%- endfor -%}"
)
GEMMA = (
    "{%- if messages[0].role == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}"
    "{%- for m in messages -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('roles must alternate') -}}{%- endif -%}"
    "<{{ 'model' if m.role == 'assistant' else m.role }}>{{ m.content }}{%- endfor -%}"
)
DEEPSEEK = (
    "{%- for m in messages -%}{%- if m.role == 'user' -%}<U>{{ m.content }}"
    "{%- elif m.role == 'assistant' and m.content is none -%}<A>{%- for c in m.tool_calls -%}"
    "<call>{{ c.function.name + '|' + c.function.arguments }}</call>{%- endfor -%}"
    "{%- elif m.role == 'assistant' -%}<A>{{ m.content }}"
    "{%- elif m.role == 'tool' -%}<R>{{ m.content }}{%- endif -%}{%- endfor -%}"
)
LLAMA = (
    "{%- for m in messages -%}{%- if m.tool_calls -%}{%- if m.tool_calls | length != 1 -%}"
    "{{- raise_exception('single tool-calls only') -}}{%- endif -%}"
    "<assistant>{{ m.tool_calls[0].function.name }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}"
    "{%- elif m.role == 'ipython' -%}<ipython>{{ m.content }}"
    "{%- elif m.role in ('user', 'assistant', 'system') -%}<{{ m.role }}>{{ m.content }}"
    "{%- endif -%}{%- endfor -%}"
)
SYSTEM_FIRST = (
    "{%- for m in messages -%}{%- if m.role == 'system' and not loop.first -%}"
    "{{- raise_exception('system message must be first') -}}{%- endif -%}"
    "<{{ m.role }}>{{ m.content }}{%- endfor -%}"
)
GUARD = Guard(["</s>"])
SYSTEM = Message(role="system", content="Be brief.")
USER = Message(role="user", content="Hello")
AGAIN = Message(role="user", content="Again")
SAID = Message(role="assistant", content="Hi")
LIMA = ToolCall(id="call_abcdefgh", name="weather", arguments={"city": "Lima"})
OSLO = ToolCall(id="call_ijklmnop", name="time", arguments={"city": "Oslo"})
CALL = Message(role="assistant", tool_calls=(LIMA,))
CALLS = Message(role="assistant", tool_calls=(LIMA, OSLO))
SUNNY = Message(role="tool", content="sunny", tool_call_id=LIMA.id)
LATE = Message(role="tool", content="late", tool_call_id=OSLO.id)


def rendered(source: str, *messages: Message) -> str:
    return Renderer(JinjaTemplate(source), GUARD).chat(messages)


def test_template_that_no_rewriting_pleases_refuses_in_its_own_words() -> None:
    source = "{% if messages[-1].content == 'Hello' %}{{ raise_exception('not that') }}{% endif %}"

    with pytest.raises(TemplateRefusedError, match="not that"):
        rendered(source, USER)


class TestRolesThatMustAlternate:
    def test_repeated_turns_are_merged(self) -> None:
        assert rendered(MISTRAL, USER, AGAIN, SAID, SAID, USER) == (
            "[INST]Hello\n\nAgain[/INST]Hi\n\nHi</s>[INST]Hello[/INST]"
        )

    def test_user_begins_where_the_beginning_is_missing(self) -> None:
        assert rendered(MISTRAL, SYSTEM, SAID, USER) == (
            "[INST]Be brief. [/INST]Hi</s>[INST]Hello[/INST]"
        )

    def test_user_may_speak_behind_a_result(self) -> None:
        prompt = rendered(MISTRAL, USER, CALL, SUNNY, AGAIN)

        assert "sunny" in prompt
        assert prompt.endswith("[/RESULT]</s>[INST]Again[/INST]")

    def test_text_before_and_behind_a_call_is_two_answers(self) -> None:
        prompt = rendered(MISTRAL, USER, SAID, CALL, SUNNY, SAID, AGAIN)

        assert prompt.startswith("[INST]Hello[/INST]Hi</s>[TOOL_CALLS]")
        assert prompt.endswith("[/RESULT][INST][/INST]Hi</s>[INST]Again[/INST]")

    def test_system_message_alone_is_written(self) -> None:
        assert rendered(MISTRAL, SYSTEM) == "[INST]Be brief. [/INST]"

    def test_begun_answer_alone_is_gone_on_with(self) -> None:
        assert rendered(GEMMA, SAID) == "<user>Hi"

    def test_results_that_are_the_user_s_are_merged_too(self) -> None:
        assert rendered(GEMMA, SYSTEM, USER, CALLS, SUNNY, LATE, AGAIN) == (
            "<user>Be brief.\n\nHello"
            '<model>{"name": "weather", "arguments": {"city": "Lima"}}\n'
            '{"name": "time", "arguments": {"city": "Oslo"}}'
            "<user>sunny\n\nlate\n\nAgain"
        )


class TestCalls:
    def test_ids_become_nine_letters_and_digits_where_the_template_insists(self) -> None:
        prompt = rendered(MISTRAL, USER, CALLS, LATE, SUNNY)

        first, second = short_id(LIMA.id), short_id(OSLO.id)
        assert f"|{first}, " in prompt
        assert f"|{second}]" in prompt
        assert prompt.endswith(f"[RESULT]late|{second}[/RESULT][RESULT]sunny|{first}[/RESULT]")

    def test_results_without_ids_belong_to_the_calls_in_their_order(self) -> None:
        bare = [replace(each, id="") for each in (LIMA, OSLO)]
        asked = replace(CALLS, tool_calls=tuple(bare))
        results = [replace(each, tool_call_id="") for each in (SUNNY, LATE)]
        prompt = rendered(MISTRAL, USER, asked, *results)

        ids = re.findall(r"\|([A-Za-z0-9]{9})", prompt)
        assert ids[:2] == ids[2:]
        assert len(set(ids)) == 2

    def test_results_without_ids_are_known_by_their_names(self) -> None:
        results = [
            Message(role="tool", content="late", tool_name="time"),
            Message(role="tool", content="sunny", tool_name="weather"),
        ]

        adapted = adapt([USER, CALLS, *results], Capabilities(calls=True, results=True))

        assert [turn.tool_call_id for turn in adapted[2:]] == [OSLO.id, LIMA.id]

    def test_result_learns_the_name_of_its_call(self) -> None:
        adapted = adapt([USER, CALLS, LATE, SUNNY], Capabilities(calls=True, results=True))

        assert [turn.tool_name for turn in adapted[2:]] == ["time", "weather"]

    def test_content_is_null_where_that_announces_calls(self) -> None:
        assert rendered(DEEPSEEK, USER, CALL, SUNNY) == (
            '<U>Hello<A><call>weather|{"city": "Lima"}</call><R>sunny'
        )

    def test_text_beside_calls_is_a_turn_of_its_own_where_one_would_be_lost(self) -> None:
        both = replace(CALL, content="Let me look.")

        assert rendered(DEEPSEEK, USER, both, SUNNY) == (
            '<U>Hello<A>Let me look.<A><call>weather|{"city": "Lima"}</call><R>sunny'
        )

    def test_calls_are_turns_of_their_own_where_a_turn_has_only_one(self) -> None:
        assert rendered(LLAMA, USER, CALLS, LATE, SUNNY, AGAIN) == (
            '<user>Hello<assistant>weather{"city": "Lima"}<ipython>sunny'
            '<assistant>time{"city": "Oslo"}<ipython>late<user>Again'
        )

    def test_result_of_no_call_is_kept(self) -> None:
        lost = Message(role="tool", content="lost", tool_call_id="other")

        assert rendered(LLAMA, USER, CALLS, lost).endswith("<ipython>lost")


class TestSystem:
    def test_later_system_message_goes_before_the_next_user_s(self) -> None:
        assert rendered(SYSTEM_FIRST, SYSTEM, SYSTEM, USER, SAID, SYSTEM, AGAIN) == (
            "<system>Be brief.\n\nBe brief.<user>Hello<assistant>Hi<user>Be brief.\n\nAgain"
        )

    def test_developer_is_the_system_where_the_template_knows_none(self) -> None:
        said = Message(role="developer", content="Be brief.")

        assert rendered(SYSTEM_FIRST, said, USER) == "<system>Be brief.<user>Hello"
        known = "{# developer #}" + SYSTEM_FIRST
        assert rendered(known, said, USER) == "<developer>Be brief.<user>Hello"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            MISTRAL,
            Capabilities(
                late_system=False,
                calls=True,
                short_ids=True,
                results=True,
                alternates=True,
                calls_aside=True,
            ),
        ),
        (GEMMA, Capabilities(system=False, late_system=False, alternates=True)),
        (
            DEEPSEEK,
            Capabilities(
                system=False,
                late_system=False,
                calls=True,
                call_objects=False,
                null_content=True,
                text_apart=True,
                results=True,
            ),
        ),
        (
            LLAMA,
            Capabilities(
                calls=True, one_call=True, text_apart=True, results=True, result_role="ipython"
            ),
        ),
        (SYSTEM_FIRST, Capabilities(late_system=False, results=True)),
    ],
)
def test_what_a_template_can_is_found_out(source: str, expected: Capabilities) -> None:
    assert probe(JinjaTemplate(source)) == expected


TURNS = st.lists(
    st.sampled_from([SYSTEM, USER, AGAIN, SAID, CALL, CALLS, SUNNY, LATE]), min_size=1, max_size=8
)


@pytest.mark.parametrize("source", [MISTRAL, GEMMA, LLAMA, SYSTEM_FIRST])
@given(turns=TURNS)
def test_no_order_of_turns_is_refused_and_no_text_lost(source: str, turns: list[Message]) -> None:
    prompt = rendered(source, *turns)

    assert all(turn.content in prompt for turn in turns)
    if source is not SYSTEM_FIRST:
        names = (call.name for turn in turns for call in turn.tool_calls)
        assert all(name in prompt for name in names)


@given(st.text())
def test_short_id_is_short_and_stays(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9]{9}", short_id(text))
    assert short_id(short_id(text)) == short_id(text)
