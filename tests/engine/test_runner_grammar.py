"""Compilation of what an answer may look like, with the demo model's vocabulary."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from server.errors import EngineRefusedError
from server.output.stream import SPELLED as OUTPUT_MARK
from server.runner.grammar import KEPT, Compiler, EngineMatcher
from server.runner.native import LIB
from server.runner.spelling import SPELLED
from server.runner.vocabulary import Vocabulary
from server.wishes import Constraint
from tests.engine.runner_driver import DEMO, Driver, settings

pytestmark = pytest.mark.engine

PING = "<|im_start|>user\nping<|im_end|>\n<|im_start|>assistant\n"


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


def constraint(kind: Any, source: object = "", **fields: Any) -> Constraint:
    text = source if isinstance(source, str) else json.dumps(source)
    return Constraint(kind=kind, source=text, **fields)


def takes(compiler: Compiler, wanted: Constraint, text: str) -> bool:
    """Whether a whole text is allowed and may end there."""
    matcher = compiler.compile(wanted).matcher
    if not matcher.takes(text.encode()):
        return False
    return matcher.complete or matcher.allows(3061)


class TestRefusals:
    @pytest.mark.parametrize(
        ("wanted", "words"),
        [
            (constraint("xml"), "expected json, json_schema, regex, lark or gbnf"),
            (constraint("gbnf", "x" * 70_000), "at most 65536 bytes"),
            (constraint("regex", "a\0"), "no zero character"),
            (constraint("regex", "("), "regex: it cannot be enforced"),
            (constraint("regex", "(?=a)b"), "look-around"),
            (constraint("lark", "start: ("), "lark: it cannot be enforced"),
            (constraint("lark", "start: nobody"), "lark: it cannot be enforced"),
            (constraint("lark", "start: a\n" + "a: a\n" * 600), "at most 500 rules, found 601"),
            (constraint("lark", "start: start"), "lark: it cannot be enforced"),
            (constraint("gbnf", "root ::= ("), "gbnf: .* is not accepted"),
            (constraint("gbnf", ""), "gbnf: .* is not accepted"),
            (constraint("gbnf", "x ::= [a]"), "gbnf: .* is not accepted"),
            (constraint("json_schema", "not json"), "it is no JSON"),
            (constraint("json_schema", "[1]"), "expected an object"),
            (constraint("json_schema", {"type": "colour"}), "Invalid type: colour"),
            (constraint("json_schema", {"const": "x" * 70_000}), "at most 65536 bytes"),
            (constraint("json_schema", {"$ref": "https://a.example"}), "does not fetch"),
            (constraint("json_schema", {"$ref": "file:///etc/passwd"}), "does not fetch"),
            (constraint("json_schema", {"$ref": "#/nowhere"}), "does not exist"),
            (constraint("json_schema", {"$ref": "#"}), "cannot be enforced"),
            (
                constraint("json_schema", {"type": "string", "minLength": 5, "maxLength": 2}),
                "Unsatisfiable",
            ),
            (constraint("json_schema", {"uniqueItems": True}, strict=True), ": uniqueItems$"),
            (
                constraint("json_schema", {"not": {}, "contains": {}}, strict=True),
                "this cannot be enforced: contains, not",
            ),
            (constraint("json_schema", {"format": "soup"}, strict=True), ": format$"),
            (constraint("json_schema", {"pattern": "(?=a)"}, strict=True), ": pattern$"),
        ],
    )
    def test_what_cannot_be_enforced_is_refused(
        self, compiler: Compiler, wanted: Constraint, words: str
    ) -> None:
        with pytest.raises(EngineRefusedError, match=words):
            compiler.compile(wanted)

    def test_grammar_the_engine_would_take_too_long_for_is_refused(
        self, vocabulary: Vocabulary
    ) -> None:
        with pytest.raises(EngineRefusedError, match="at most 512 alternatives"):
            EngineMatcher(vocabulary, "root ::= " + '"a" |' * 600 + ' "b"')


def _chain(link: str, end: str, levels: int) -> dict[str, Any]:
    """Definitions that each refer to the next."""
    names = [f"d{n}" for n in range(levels)]
    defs: dict[str, Any] = {
        name: json.loads(link.replace("NEXT", following))
        for name, following in itertools.pairwise(names)
    }
    return {"$defs": {**defs, names[-1]: json.loads(end)}, "$ref": "#/$defs/d0"}


DOUBLED = '{"allOf":[{"anyOf":[{"$ref":"#/$defs/NEXT"},{"$ref":"#/$defs/NEXT"}]},{}]}'
HOSTILE = [
    constraint("json_schema", '{"items":' * 3000 + "{}" + "}" * 3000),
    constraint("json_schema", '{"items":' * 90 + "{}" + "}" * 90),
    constraint("json_schema", _chain('{"$ref":"#/$defs/NEXT"}', "{}", 1700)),
    constraint("json_schema", _chain('{"items":{"$ref":"#/$defs/NEXT"}}', "{}", 1300)),
    constraint("json_schema", _chain('{"allOf":[{"$ref":"#/$defs/NEXT"}]}', "{}", 1300)),
    constraint("json_schema", _chain(DOUBLED, '{"type":"string"}', 40)),
    constraint("json_schema", {"type": "string", "maxLength": 10**9}),
    constraint("json_schema", {"type": "array", "minItems": 10**7, "maxItems": 10**9}),
    constraint("json_schema", {"enum": [f"{n}x{n}" for n in range(4000)]}),
    constraint("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    constraint("json_schema", {"type": "string", "pattern": "^((a?){90}){90}$"}),
    constraint("json_schema", {"type": "string", "pattern": "(.*a){30}.{60}x" * 50}),
    constraint("regex", "(" * 30_000 + ")" * 30_000),
    constraint("regex", "(a|b)*a(a|b){40}"),
    constraint("regex", "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
    constraint("lark", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    constraint("lark", "start: a0\n" + "".join(f"a{n}: a{n + 1}\n" for n in range(499))),
    constraint("lark", 'start: start start | "a" | start start start'),
    constraint("gbnf", "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000),
    constraint("gbnf", 'root ::= root "a" | "b"'),
]


@pytest.fixture(scope="module")
def runner() -> Iterator[Driver]:
    with Driver(settings(num_ctx=256, slots=2)) as driver:
        yield driver
    assert driver.process.returncode == 0, driver.stderr


class TestHostileSources:
    """In a real runner: its threads have the stack that deep grammars take."""

    @pytest.mark.parametrize("wanted", HOSTILE, ids=lambda wanted: wanted.source[:30])
    def test_they_cost_their_own_request_at_most(self, runner: Driver, wanted: Constraint) -> None:
        beside = runner.start(PING, num_predict=20)
        request = runner.start(PING, num_predict=20, constraint=wanted)
        runner.finish(beside)
        row = runner.finish(request)

        assert (row.done is None) != (row.fault is None)
        assert len(row.fault or "") < 1000
        assert runner.whole(beside).text == "pong"


class TestKept:
    def test_compiled_sources_are_not_kept_for_ever(self, vocabulary: Vocabulary) -> None:
        compiler = Compiler(vocabulary)
        for number in range(KEPT + 5):
            compiler.compile(constraint("regex", f"a{number}"))

        assert len(compiler._kept) == KEPT


class TestSchemas:
    PERSON = constraint(
        "json_schema",
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
            },
            "required": ["name", "age"],
            "additionalProperties": False,
        },
        strict=True,
    )

    @pytest.mark.parametrize(
        ("text", "fits"),
        [
            ('{"name":"ada","age":36}', True),
            ('{ "name": "ada", "age": 150 }', True),
            ('{\n  "name": "ada",\n  "age": 0\n}', True),
            ('{"name":"Ada","age":36}', False),
            ('{"name":"ada","age":151}', False),
            ('{"name":"ada"}', False),
            ('{"name":"ada",  "age":36}', False),
            ("{" + "\n" * 9, False),
        ],
    )
    def test_ranges_patterns_and_white_space_are_enforced(
        self, compiler: Compiler, text: str, *, fits: bool
    ) -> None:
        assert takes(compiler, self.PERSON, text) is fits

    def test_json_is_any_object(self, compiler: Compiler) -> None:
        assert takes(compiler, constraint("json"), '{"a": [1, null, {"b": "c"}]}')
        assert not takes(compiler, constraint("json"), "[1]")

    def test_what_cannot_be_enforced_is_left_out_and_named(self, compiler: Compiler) -> None:
        schema = {
            "type": "object",
            "properties": {
                "id": {"type": "string", "pattern": "^(?!x)"},
                "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                "sort": {"enum": [{"pattern": "(?=a)"}]},
            },
            "additionalProperties": False,
        }
        compiled = compiler.compile(constraint("json_schema", schema))

        assert set(compiled.relaxed) == {"pattern", "uniqueItems"}
        assert compiled.matcher.takes(b'{"id":"x","tags":["a","a"],"sort":{"pattern":"(?=a)"}}')

    def test_the_schema_cannot_loosen_itself(self, compiler: Compiler) -> None:
        schema = {"x-guidance": {"lenient": True}, "uniqueItems": True}
        with pytest.raises(EngineRefusedError, match="uniqueItems"):
            compiler.compile(constraint("json_schema", schema, strict=True))

    def test_texts_of_control_tokens_may_be_spelled(self, compiler: Compiler) -> None:
        matcher = compiler.compile(constraint("json_schema", {"const": "<tool_call>"})).matcher
        said: list[int] = []
        while not matcher.complete and len(said) < 20:
            said.append(int(matcher.allowed()[0]))
            matcher.accept(said[-1])

        assert 3068 not in said
        assert len(said) > 3

    def test_forced_tokens_are_known(self, compiler: Compiler, vocabulary: Vocabulary) -> None:
        matcher = compiler.compile(constraint("regex", "an air gap, [0-9]{3}")).matcher

        assert vocabulary.detokenize(matcher.forced()).strip() == "an air gap,"

    def test_requests_with_the_same_schema_are_apart(self, compiler: Compiler) -> None:
        first, second = (compiler.compile(self.PERSON).matcher for _ in range(2))
        assert first.takes(b'{"name":"ada"')

        assert second.takes(b'{"name":"bob"')


class TestGrammars:
    @pytest.mark.parametrize(
        ("wanted", "text"),
        [
            (constraint("regex", "[0-9]{3}|none"), "none"),
            (constraint("lark", 'start: "a" b+\nb: /[0-9]/'), "a123"),
            (constraint("gbnf", 'root ::= "a" item{2,3}\nitem ::= [x-z] | "é"'), "axé"),
            (constraint("gbnf", 'root ::= root-part "!"\nroot-part ::= "hi"'), "hi!"),
        ],
    )
    def test_each_kind_is_followed(self, compiler: Compiler, wanted: Constraint, text: str) -> None:
        assert takes(compiler, wanted, text)
        assert not takes(compiler, wanted, text + "?")


class TestEngineGrammar:
    """What llguidance cannot convert."""

    SOURCE = 'root ::= "<|im_start|>" [a-c]+'

    def test_control_tokens_are_no_text(self, vocabulary: Vocabulary) -> None:
        subject = EngineMatcher(vocabulary, self.SOURCE)

        assert not subject.allows(3060)
        assert 3060 not in subject.allowed()
        with pytest.raises(EngineRefusedError, match="not allowed"):
            subject.accept(3060)
        subject.close()

    def test_it_is_followed_to_its_end(self, vocabulary: Vocabulary) -> None:
        subject = EngineMatcher(vocabulary, self.SOURCE)
        assert subject.takes(b"<|im_start|>ab")

        assert not subject.takes(b"z")
        assert subject.allows(3061)
        assert subject.forced() == ()
        again = subject.fork()
        assert again.takes(b"<|im_start|>c")
        subject.close()
        again.close()


class TestBegunByAText:
    """In a real runner: what a text begins is bound, and given up where that cannot be."""

    def test_bound_from_the_text_on_and_free_again(self, runner: Driver) -> None:
        free = runner.generate(PING, num_predict=20)
        assert free.text == "pong"
        wanted = constraint("lark", 'start: "p" /[0-9]{3}/ "!"', begins=("p",), optional=True)
        row = runner.generate(PING, num_predict=20, constraint=wanted)
        assert re.match(r"p[0-9]{3}!", row.text), row

    def test_what_cannot_be_compiled_leaves_the_answer_free(self, runner: Driver) -> None:
        wanted = constraint("lark", "start: (", begins=("po",), optional=True)
        assert runner.generate(PING, num_predict=20, constraint=wanted).text == "pong"
        refused = constraint("lark", "start: (", begins=("po",))
        assert runner.generate(PING, num_predict=20, constraint=refused).refused


class TestSpelledControlTokens:
    def test_they_are_marked_and_those_of_the_token_are_not(self, runner: Driver) -> None:
        spelled = constraint("lark", 'start: "<tool" /_/ "call>" <[3068]> "x"')
        row = runner.generate(PING, num_predict=40, constraint=spelled)
        assert row.text == f"<tool_call{SPELLED}><tool_call>x"
        assert OUTPUT_MARK == SPELLED
