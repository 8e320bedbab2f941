"""How a model writes is found out by letting its template write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.calling import new_call_id
from server.chat import Tool
from server.chunks import ToolCallChunk
from server.detection import OLLAMA_PARSERS, detect_output
from server.output.detect import Detected
from server.output.families import FAMILIES
from server.output.layout import Tags
from server.output.stream import OutputStream
from server.prompt.choice import choose
from server.prompt.jinja import JinjaTemplate

DEMO = Path(__file__).parents[1] / "demo-model"
GO = Path(__file__).parents[1] / "golden" / "gotemplate"

CHAT = """
{%- for m in messages -%}
<|turn_{{ m.role }}|>
{%- if m.reasoning_content %}REASONING{% endif -%}
{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}CALL{% endfor -%}
<|turn_end|>
{%- endfor -%}
"""
NAME = "{{ c.function.name }}"
JSON = "{{ c.function.arguments | tojson }}"
THINK = "<think>{{ m.reasoning_content }}</think>"


def tagged(before: str, between: str, behind: str) -> str:
    return (
        "{% for k, v in c.function.arguments | items %}"
        f"{before}{{{{ k }}}}{between}{{{{ v }}}}{behind}{{% endfor %}}"
    )


def detected(call: str, *, thought: str = "", extra: str = "", **more: Any) -> Detected:
    source = extra + CHAT.replace("CALL", call).replace("REASONING", thought)
    return detect_output(choose(layer=None, jinja=source), **more)


CALLS = [
    ("hermes", f'<tool_call>{{"name": "{NAME}", "arguments": {JSON}}}</tool_call>'),
    (
        "qwen-coder",
        f"<tool_call><function={NAME}>"
        + tagged("<parameter=", ">\n", "\n</parameter>")
        + "</function></tool_call>",
    ),
    (
        "seed-oss",
        f"<seed:tool_call><function={NAME}>"
        + tagged("<parameter=", ">", "</parameter>")
        + "</function></seed:tool_call>",
    ),
    ("llama3", f'{{"name": "{NAME}", "parameters": {JSON}}}'),
    ("functionary", f"<function={NAME}>{JSON}</function>"),
    ("mistral", f'[TOOL_CALLS][{{"name": "{NAME}", "arguments": {JSON}}}]'),
    ("mistral", f"[TOOL_CALLS]{NAME}[ARGS]{JSON}"),
    ("gemma4", f"<|tool_call>call:{NAME}{{ {tagged('', ':', ',')} }}<tool_call|>"),
    ("functiongemma", f"<start_function_call>call:{NAME}{{}}<end_function_call>"),
    (
        "deepseek",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{NAME}<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜>",
    ),
    ("deepseek-dsml", f'<｜DSML｜function_calls><｜DSML｜invoke name="{NAME}">{JSON}'),
    ("phi4", f'<|tool_call|>[{{"name": "{NAME}", "arguments": {JSON}}}]<|/tool_call|>'),
    ("granite3", f'<|tool_call|>[{{"name": "{NAME}", "arguments": {JSON}}}]'),
    ("command-r7b", f'<|START_ACTION|>[{{"tool_name": "{NAME}", "parameters": {JSON}}}]'),
    ("command-r", f'Action: ```json\n[{{"tool_name": "{NAME}", "parameters": {JSON}}}]```'),
    (
        "glm4",
        f"<tool_call>{NAME}"
        + tagged("<arg_key>", "</arg_key><arg_value>", "</arg_value>")
        + "</tool_call>",
    ),
    ("kimi-k2", f"<|tool_call_begin|>functions.{NAME}:0<|tool_call_argument_begin|>{JSON}"),
    ("minimax-m2", f'<minimax:tool_call><invoke name="{NAME}">{JSON}</invoke>'),
    (
        "minicpm5",
        f'<function name="{NAME}">' + tagged('<param name="', '">', "</param>") + "</function>",
    ),
    ("lfm2", f"<|tool_call_start|>[{NAME}()]<|tool_call_end|>"),
    ("apertus", f'<|tools_prefix|>[{{"{NAME}": {JSON}}}]<|tools_suffix|>'),
]


@pytest.mark.parametrize(("family", "call"), CALLS)
def test_family_is_known_by_the_call_its_template_writes(family: str, call: str) -> None:
    found = detected(call)
    assert (found.family.name, found.by) == (family, "call")


@pytest.mark.parametrize(
    ("family", "mention"),
    [
        ("harmony", "<|start|> <|channel|>analysis<|message|>"),
        ("llama3", "<|python_tag|>"),
        ("gemma3", "<start_of_turn> <end_of_turn>"),
        ("phi4", "<|tool|> <|/tool|>"),
        ("granite3", "write <|tool_call|> first"),
        ("lfm2", "<|tool_list_start|>"),
        ("plain", ""),
    ],
)
def test_template_that_writes_no_call_is_known_by_what_it_mentions(
    family: str, mention: str
) -> None:
    found = detected("", extra=mention)
    assert found.family.name == family
    assert found.by == ("mention" if mention else "nothing")


FRAMES = [
    f'<CALLS>[{{"name": "{NAME}", "arguments": {JSON}}}]</CALLS>',
    f'<|fn|>{{"tool": "{NAME}", "input": {JSON}}}',
    f'<use>{{"{NAME}": {JSON}}}</use>',
    f"<run>{NAME}<with>{JSON}</run>",
    f"<go>{NAME}</go>" + tagged("<k>", "</k><v>", "</v>") + "</end>",
]


@pytest.mark.parametrize("call", FRAMES)
def test_unknown_frame_becomes_a_family_that_reads_it(call: str) -> None:
    """What such a template writes for a call is read as that call."""
    found = detected(call)
    assert (found.family.name, found.by) == ("generic", "frame")
    source = CHAT.replace("CALL", call).replace("REASONING", "")
    arguments = {"city": "Lima", "days": 3}
    written = _written(source, arguments)
    tool = Tool(name="weather", description="", parameters={})
    out = OutputStream(family=found.family, tools=(tool,), new_call_id=new_call_id)
    pieces = [*out.feed("So. " + written), *out.finish()]
    (whole,) = [piece.call for piece in pieces if isinstance(piece, ToolCallChunk)]
    assert (whole.name, dict(whole.arguments)) == ("weather", arguments)


def _written(source: str, arguments: dict[str, Any]) -> str:
    function = {"name": "weather", "arguments": arguments}
    turn = {"role": "assistant", "tool_calls": [{"function": function}]}
    text = JinjaTemplate(source).render([turn])
    return text.removeprefix("<|turn_assistant|>").removesuffix("<|turn_end|>")


def test_frame_that_depends_on_the_call_is_not_understood() -> None:
    call = "<use>" + NAME + tagged("<", ">", "</{{ k }}>") + "</use>"
    assert detected(call).family.name == "plain"


@pytest.mark.parametrize(
    ("thought", "extra", "tags"),
    [
        (THINK, "", Tags()),
        ("[THINK]{{ m.reasoning_content }}[/THINK]", "", Tags(open="[THINK]", close="[/THINK]")),
        ("<why>\n{{ m.reasoning_content }}\n</why>\n", "", Tags(open="<why>", close="</why>")),
        ("", "<seed:think> </seed:think>", Tags(open="<seed:think>", close="</seed:think>")),
        ("{{ m.reasoning_content }}", "", Tags()),
        ("", "", Tags()),
    ],
)
def test_tags_are_those_the_template_writes_or_mentions(
    thought: str, extra: str, tags: Tags
) -> None:
    assert detected("", thought=thought, extra=extra).tags == tags


def test_operator_and_model_configuration_go_before_the_template() -> None:
    call = CALLS[0][1]
    assert detected(call, parser="qwen3-coder").family.name == "qwen-coder"
    assert detected(call, parser="unheard-of").family.name == "hermes"
    found = detected(call, override="plain", parser="qwen3-coder")
    assert (found.family.name, found.by) == ("plain", "configuration")
    assert set(OLLAMA_PARSERS.values()) <= {"plain", *FAMILIES}


def test_template_that_takes_tools_and_shows_no_call_is_read_by_the_commonest_forms() -> None:
    tools = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    found = detected("", extra=tools)
    assert (found.family.name, found.by) == ("generic", "nothing")
    bare = '{"name": "f", "arguments": {}}'
    for text in (bare, f"<tool_call>{bare}</tool_call>"):
        tool = Tool(name="f", description="", parameters={})
        out = OutputStream(family=found.family, tools=(tool,), new_call_id=new_call_id)
        assert [piece.kind for piece in out.feed(text)][-1] == "tool_call"


def test_broken_template_is_no_reason_to_fail() -> None:
    assert detect_output(choose(layer=None, jinja="{% if %}")).family.name == "plain"
    assert detect_output(choose(layer="{{ if }}", jinja=None)).family.name == "plain"
    assert detect_output(choose(layer=None, jinja=None)).family.name == "plain"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("qwen-tools", "hermes"),
        ("mistral-tools", "mistral"),
        ("llama3.1-tools", "llama3"),
        ("command-r", "command-r"),
        ("harmony", "harmony"),
        ("vicuna", "plain"),
    ],
)
def test_go_templates_are_read_alike(name: str, family: str) -> None:
    source = next(GO.rglob(f"{name}.gotmpl")).read_text()
    assert detect_output(choose(layer=source, jinja=None)).family.name == family


def test_demo_model_writes_as_hermes_by_both_its_templates() -> None:
    jinja = (DEMO / "chat_template.jinja").read_text()
    layer = (DEMO / "ollama.template").read_text()
    for choice in (choose(layer=None, jinja=jinja), choose(layer=layer, jinja=None)):
        found = detect_output(choice)
        assert (found.family.name, found.by, found.tags) == ("hermes", "call", Tags())


def test_detection_is_the_same_every_time() -> None:
    seen = {json.dumps([repr(detected(call)) for _, call in CALLS]) for _ in range(3)}
    assert len(seen) == 1
