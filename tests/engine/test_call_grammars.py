"""Grammars of demanded calls: each family's own transcripts fit them, and wrong calls do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from server.calling import new_call_id
from server.chat import Tool
from server.chunks import TextChunk, ToolCallChunk
from server.errors import EngineRefusedError
from server.output.demand import answer_lead, begun_calls, calls_grammar
from server.output.families import FAMILIES
from server.output.families.mistral import written_as
from server.output.layout import Family
from server.output.stream import OutputStream
from server.runner.gate import Gate
from server.runner.grammar import Compiler
from server.runner.native import LIB
from server.runner.vocabulary import Vocabulary
from server.wishes import Constraint, ConstraintKind, Reasoning
from tests.engine.runner_driver import DEMO

pytestmark = pytest.mark.engine

WEATHER = Tool(
    name="weather",
    description="",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "options": {"type": "object"},
        },
    },
)
ZONE = Tool(
    name="zone",
    description="",
    parameters={
        "type": "object",
        "properties": {"name": {"type": "string", "enum": ["UTC", "CET"]}},
        "required": ["name"],
        "additionalProperties": False,
    },
)
END = 3061
FORMS = [*FAMILIES.values(), written_as("[CALL_ID][ARGS]"), written_as("[ARGS]")]


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    LIB.llama_backend_init()
    params = LIB.llama_model_default_params()
    params.vocab_only = True
    model = LIB.llama_model_load_from_file(str(DEMO).encode(), params)
    yield Vocabulary(model)
    LIB.llama_model_free(model)


@pytest.fixture(scope="module")
def compiler(vocabulary: Vocabulary) -> Compiler:
    return Compiler(vocabulary)


class Demand:
    """One family's grammar, with what the demo model's vocabulary has as control tokens."""

    def __init__(
        self, vocabulary: Vocabulary, compiler: Compiler, family: Family, *, several: bool = True
    ) -> None:
        def special(text: str) -> int | None:
            ids = vocabulary.tokenize(text, special=True)
            return ids[0] if len(ids) == 1 and vocabulary.is_framing(ids[0]) else None

        grammar = calls_grammar(family, (WEATHER, ZONE), special, several=several)
        assert grammar is not None
        self._vocabulary = vocabulary
        self._matcher = compiler.compile(Constraint(kind="lark", source=grammar)).matcher

    def takes(self, text: str) -> bool:
        """Whether a whole text is allowed and may end there."""
        matcher = self._matcher.fork()
        for token in self._vocabulary.tokenize(text, special=True):
            if not matcher.allows(token):
                return False
            matcher.accept(token)
        return matcher.complete or matcher.allows(END)


LIMA = '{"city": "Lima"}'
OBJECT = f'{{"name": "weather", "arguments": {LIMA}}}'
TAGS = "<parameter=city>\n{value}\n</parameter>\n</function>"
INVOKED = '<invoke name="weather">\n<parameter name="city">Lima</parameter>\n</invoke>'
DSML = "\uff5cDSML\uff5c"
CALLED = "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>"
ENDED = "<\uff5ctool\u2581call\u2581end\uff5c><\uff5ctool\u2581calls\u2581end\uff5c>"
SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
COHERE = f'[{{"tool_name": "weather", "parameters": {LIMA}}}]'
WRITTEN = {
    "hermes": f"<tool_call>\n{OBJECT}\n</tool_call>",
    "qwen-coder": "<tool_call>\n<function=weather>\n"
    + TAGS.format(value="Lima")
    + "\n</tool_call>",
    "seed-oss": "<seed:tool_call>\n<function=weather>\n<parameter=city>Lima</parameter>\n"
    "</function>\n</seed:tool_call>",
    "llama3": f'{{"name": "weather", "parameters": {LIMA}}}',
    "functionary": f"<function=weather>{LIMA}</function>",
    "gemma3": OBJECT,
    "gemma4": '<|tool_call>call:weather{city:<|"|>Lima<|"|>,days:3}<tool_call|>',
    "functiongemma": "<start_function_call>call:weather{city:<escape>Lima<escape>}"
    "<end_function_call>",
    "deepseek": f"{CALLED}weather{SEPARATOR}{LIMA}{ENDED}",
    "deepseek-dsml": f'<{DSML}function_calls>\n<{DSML}invoke name="weather">\n'
    f'<{DSML}parameter name="city" string="true">Lima</{DSML}parameter>\n'
    f"</{DSML}invoke>\n</{DSML}function_calls>",
    "phi4": f"<|tool_call|>[{OBJECT}]<|/tool_call|>",
    "granite3": f"<|tool_call|>[{OBJECT}]",
    "command-r7b": f"<|START_ACTION|>{COHERE}<|END_ACTION|>",
    "command-r": f"Action: ```json\n{COHERE}```",
    "glm4": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Lima</arg_value>\n"
    "</tool_call>",
    "harmony": "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + LIMA,
    "kimi-k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    f"<|tool_call_argument_begin|>{LIMA}<|tool_call_end|><|tool_calls_section_end|>",
    "minimax-m1": f"<tool_calls>\n{OBJECT}\n</tool_calls>",
    "minimax-m2": f"<minimax:tool_call>\n{INVOKED}\n</minimax:tool_call>",
    "minicpm5": '<function name="weather"><param name="city">Lima</param></function>',
    "lfm2": '<|tool_call_start|>[weather(city="Lima", days=3)]<|tool_call_end|>',
    "apertus": f'<|tools_prefix|>[{{"weather": {LIMA}}}]<|tools_suffix|>',
}
MISTRAL = [
    f"[TOOL_CALLS][{OBJECT}]",
    f"[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{LIMA}",
    f"[TOOL_CALLS]weather[ARGS]{LIMA}",
]
CASES = [
    *((FAMILIES[name], text) for name, text in WRITTEN.items()),
    *zip([FAMILIES["mistral"], *FORMS[-2:]], MISTRAL, strict=True),
]


class Begun:
    """One family's calls while nothing is demanded: what of a text the gate lets through."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        compiler: Compiler,
        family: Family,
        tools: tuple[Tool, ...] = (WEATHER, ZONE),
    ) -> None:
        def special(text: str) -> int | None:
            ids = vocabulary.tokenize(text, special=True)
            return ids[0] if len(ids) == 1 and vocabulary.is_framing(ids[0]) else None

        calls = begun_calls(family, tools, special, several=True)
        self.begins = calls.begins if calls else ()
        grammar = calls.grammar if calls else 'start: "x"'
        self._vocabulary = vocabulary
        tags = Reasoning(open=family.tags.open, close=family.tags.close)
        self._wanted = Constraint(
            kind="lark", source=grammar, begins=self.begins or ("never",), reasoning=tags
        )
        self._matcher = compiler.compile(self._wanted).matcher

    def says(self, text: str, *, spelled: bool = False) -> str:
        """The text up to the token that is refused; a bar follows where the answer may end."""
        parts = text if spelled else [text]
        gate = Gate(self._wanted, self._matcher.fork(), self._vocabulary)
        said = []
        for token in [
            token for part in parts for token in self._vocabulary.tokenize(part, special=True)
        ]:
            if not gate.allows(token):
                break
            gate.accept(token)
            said.append(token)
        return self._vocabulary.detokenize(said) + "|" * gate.allows(END)


def test_every_family_is_tried() -> None:
    assert {family.name for family, _ in CASES} == set(FAMILIES)


@pytest.mark.parametrize(("family", "text"), CASES, ids=[case[0].name for case in CASES])
def test_what_a_family_writes_fits_its_grammar_and_is_read_as_the_call(
    vocabulary: Vocabulary, compiler: Compiler, family: Family, text: str
) -> None:
    demand = Demand(vocabulary, compiler, family)
    assert demand.takes(text)
    assert not demand.takes("")
    assert not demand.takes("The weather is fine.")
    assert not demand.takes(text.replace("weather", "whether"))
    out = OutputStream(family=family, tools=(WEATHER,), new_call_id=new_call_id)
    pieces = [*out.feed(text), *out.finish()]
    (call,) = [piece.call for piece in pieces if isinstance(piece, ToolCallChunk)]
    assert (call.name, call.arguments["city"]) == ("weather", "Lima")


UNANNOUNCED = {"llama3", "gemma3"}
"""Families whose usual calls are bare JSON."""


@pytest.mark.parametrize(("family", "text"), CASES, ids=[case[0].name for case in CASES])
def test_call_that_a_family_begins_is_bound_and_all_else_is_free(
    vocabulary: Vocabulary, compiler: Compiler, family: Family, text: str
) -> None:
    begun = Begun(vocabulary, compiler, family)
    head, tail = "I call:\n", " Done <|x|> <tool> [1] {}"
    assert begun.says(head + tail) == f"{head}{tail}|"
    assert begun.says(head + text + tail) == f"{head}{text}{tail}|"
    assert begun.says(f"{head}{text}\n{text}") == f"{head}{text}\n{text}|"
    wrong = text.replace("weather", "whether")
    thought = f"{family.tags.open}{wrong}{family.tags.close}\n\nFine."
    assert begun.says(thought) == f"{thought}|"
    said = begun.says(head + wrong)
    if family.name in UNANNOUNCED:
        assert said == f"{head}{wrong}|"
    else:
        assert len(head) + 3 < len(said) < len(head + wrong)
        assert (head + wrong).startswith(said)


def test_every_family_has_texts_that_begin_nothing_but_calls(
    vocabulary: Vocabulary, compiler: Compiler
) -> None:
    for family in FORMS:
        begins = Begun(vocabulary, compiler, family).begins
        assert begins, family.name
        assert not any(begin.startswith(("{", "```json")) for begin in begins)
    assert begun_calls(Family(name="plain"), (WEATHER,), lambda _: None, several=True) is None


HARMONY_BEGUN = [
    "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.weather json<|message|>",
    "<|channel|>analysis to=functions.weather<|message|>",
    "<|start|>assistant to=functions.weather<|channel|>commentary <|constrain|>json<|message|>",
]


@pytest.mark.parametrize("form", HARMONY_BEGUN)
def test_harmony_begins_calls_in_several_forms(
    vocabulary: Vocabulary, compiler: Compiler, form: str
) -> None:
    begun = Begun(vocabulary, compiler, FAMILIES["harmony"])
    thought = "<|channel|>analysis<|message|>Weather.<|end|>"
    if not form.startswith("<|start|>"):
        thought += "<|start|>assistant"
    for head in ("", thought):
        assert begun.says(f"{head}{form}{LIMA}<|call|>") == f"{head}{form}{LIMA}<|call|>|"
        wrong = head + form + '{"days": "x"}'
        said = begun.says(wrong)
        assert wrong.startswith(said)
        assert said.startswith(head + form + '{"days"')
    plain = "<|channel|>commentary<|message|>I look it up.<|end|>"
    assert begun.says(plain + "commentary to=functions.x") == f"{plain}commentary to=functions.x|"


def test_call_whose_opener_was_forgotten_is_bound(
    vocabulary: Vocabulary, compiler: Compiler
) -> None:
    begun = Begun(vocabulary, compiler, FAMILIES["qwen-coder"])
    text = WRITTEN["qwen-coder"].removeprefix("<tool_call>\n")
    assert begun.says(text) == f"{text}|"
    assert begun.says("<function=whether>") in {"<function=", "<function=w"}


def test_spelled_opener_begins_no_call_where_the_vocabulary_has_the_token(
    vocabulary: Vocabulary, compiler: Compiler
) -> None:
    begun = Begun(vocabulary, compiler, FAMILIES["hermes"])
    text = "It writes <tool_call> and <tool_call>{} then."
    assert begun.says(text, spelled=True) == f"{text}|"
    assert begun.says(text) == "It writes <tool_call>"


def test_strict_tool_refuses_what_cannot_be_enforced(
    vocabulary: Vocabulary, compiler: Compiler
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tool = Tool(name="f", description="", parameters=schema)
    for name in sorted(set(FAMILIES) - {"gemma4", "functiongemma"}):
        Begun(vocabulary, compiler, FAMILIES[name], (tool,))
        with pytest.raises(EngineRefusedError, match=r"this cannot be enforced: uniqueItems$"):
            Begun(vocabulary, compiler, FAMILIES[name], (replace(tool, strict=True),))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"name": "zone", "arguments": {"name": "UTC"}}', True),
        ('{"name": "zone", "arguments": {"name": "EST"}}', False),
        ('{"name": "zone", "arguments": {}}', False),
        ('{"name": "other", "arguments": {}}', False),
        ('{"name": "weather", "arguments": {"days": 3}}', True),
        ('{"name": "weather", "arguments": {"days": "three"}}', False),
    ],
)
def test_arguments_fit_the_schema_of_their_tool(
    vocabulary: Vocabulary, compiler: Compiler, text: str, *, fits: bool
) -> None:
    demand = Demand(vocabulary, compiler, FAMILIES["hermes"])
    assert demand.takes(f"<tool_call>\n{text}\n</tool_call>") is fits


def test_several_calls_come_only_where_they_may(vocabulary: Vocabulary, compiler: Compiler) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    family = FAMILIES["hermes"]
    assert Demand(vocabulary, compiler, family).takes(f"{call}\n{call}")
    single = Demand(vocabulary, compiler, family, several=False)
    assert single.takes(call)
    assert not single.takes(f"{call}\n{call}")


def test_tagged_strings_hold_what_is_no_end(vocabulary: Vocabulary, compiler: Compiler) -> None:
    demand = Demand(vocabulary, compiler, FAMILIES["qwen-coder"])
    head, tail = "<tool_call>\n<function=weather>\n<parameter=city>\n", "</function>\n</tool_call>"
    assert demand.takes(f"{head}a < b </c>\nd\n</parameter>\n{tail}")
    assert not demand.takes(f"{head}a{tail}")


def test_a_family_without_calls_has_no_grammar() -> None:
    assert calls_grammar(Family(name="plain"), (WEATHER,), lambda _: None, several=True) is None


def test_format_is_bound_behind_the_header_of_harmonys_final_message(compiler: Compiler) -> None:
    lead = answer_lead(FAMILIES["harmony"], lambda _: None)
    schema = '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'

    def takes(text: str, kind: ConstraintKind = "json_schema", source: str = schema) -> bool:
        wanted = Constraint(kind=kind, source=source, lead=lead)
        matcher = compiler.compile(wanted).matcher
        return matcher.takes(text.encode()) and (matcher.complete or matcher.allows(END))

    header = "<|channel|>final<|message|>"
    assert not takes(LIMA)
    assert not takes(f"{header}{{}}")
    assert not takes("<|channel|>commentary<|message|>" + LIMA)
    assert takes(header + LIMA)
    assert takes(f"<|start|>assistant{header}{LIMA}")
    assert takes(header + LIMA, "json", "")
    assert takes(header + "abc", "regex", "[a-c]+")
    assert takes(header + "yes", "lark", 'start: "yes" | "no"')
    assert takes(header + "yes", "gbnf", 'root ::= "yes" | "no"')
    with pytest.raises(EngineRefusedError, match="gbnf"):
        takes(header, "gbnf", 'root ::= "yes" [')


REASONED = "<|channel|>analysis<|message|>The city.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (REASONED + LIMA, False),
        (f"{REASONED}<|start|>assistant<|channel|>commentary<|message|>Yes.", False),
        (f"{REASONED}{FINAL}Yes.", False),
        (f"{REASONED}{FINAL}{LIMA}", True),
        (f"<|channel|>final<|message|>{LIMA}", True),
    ],
)
def test_harmony_reasons_freely_and_then_answers_in_the_format(
    vocabulary: Vocabulary, compiler: Compiler, text: str, *, fits: bool
) -> None:
    family = FAMILIES["harmony"]
    output = OutputStream(family=family)
    wanted = Constraint(
        kind="json_schema",
        source='{"type":"object","properties":{"city":{"type":"string"}}}',
        lead=answer_lead(family, lambda _: None),
        reasoning=output.reasoning,
    )
    gate = Gate(wanted, compiler.compile(wanted).matcher, vocabulary)
    for token in vocabulary.tokenize(text, special=True):
        if not gate.allows(token):
            break
        gate.accept(token)
    else:
        pieces = [*output.feed(text), *output.finish()]
        shown = "".join(piece.text for piece in pieces if isinstance(piece, TextChunk))
        assert json.loads(shown) == {"city": "Lima"}
        assert fits
        return
    assert not fits


def test_schema_behind_a_header_is_refused_in_strict_mode_like_any(compiler: Compiler) -> None:
    lead = answer_lead(FAMILIES["harmony"], lambda _: None)
    wanted = Constraint(
        kind="json_schema", source='{"type":"array","uniqueItems":true}', lead=lead, strict=True
    )

    with pytest.raises(EngineRefusedError, match="uniqueItems"):
        compiler.compile(wanted)


def test_other_families_say_nothing_before_their_text() -> None:
    assert {name for name, each in FAMILIES.items() if answer_lead(each, lambda _: None)} == {
        "harmony"
    }
