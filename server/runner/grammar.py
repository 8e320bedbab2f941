"""From what a request wants its answer to look like to a matcher of tokens.

llguidance parses JSON schemas, regular expressions and Lark grammars, and GBNF after a conversion.
GBNF that cannot be converted goes to the engine's own grammar sampler.

Rules:
 * a source is at most `MAX_SOURCE_BYTES` long: the parser recurses, and one level of the deepest
   nesting that fits takes less than `READER_STACK_BYTES` / 6,500 of stack;
 * what a step and a compilation may cost is limited by `LIMITS`; over them, one request fails;
 * a keyword that cannot be enforced is refused in strict mode, and left out and named otherwise;
 * references lead into the schema itself or to the meta-schemas; nothing is ever fetched.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from server.errors import EngineRefusedError
from server.runner.chain import Candidates, Grammar
from server.runner.gate import Matcher
from server.runner.native import TOKENIZE_ADDRESS
from server.runner.vocabulary import Vocabulary
from server.wishes import Constraint

MAX_SOURCE_BYTES = 64 << 10
"""64 KiB. Why: real schemas are a few KiB; chains of references as deep as fit into this need
some 40 MiB of stack."""

MAX_RULES = 500
"""In a Lark or GBNF grammar. Why: the time to refuse a chain of rules grows with the square of its
length; 500 take 1.3 s of processor time, 2,000 take 20 s."""

MAX_ALTERNATIVES = 512
"""In one rule that the engine's sampler gets. Why: its time for a token grows with their square:
28 ms for 1,000."""

KEPT = 8
"""Compiled sources kept for the next request. Why: `LIMITS` lets one grow to some 40 MB."""

LIMITS = LLParserLimits(
    max_lexer_states=20_000,  # 1 to 2 kB each
    initial_lexer_fuel=1_000_000,  # 20 ms
    step_lexer_fuel=200_000,  # 14 ms
    step_max_items=50_000,  # 3 ms
    verbose_errors=False,  # a message must not show the answer so far
)
"""Times are those llguidance states."""

_LONGEST_SPELLED = 64
"""Bytes. Why: texts of control tokens are shorter."""

_OPTIONS: Any = {
    "lenient": True,
    "coerce_one_of": False,
    "whitespace_pattern": r"( |\n[ \t]{0,20})",
}
"""White space is bounded: models get lost in it."""

_DATA = frozenset({"const", "enum", "default", "example", "examples"})
"""Keywords whose values are data, not schemas."""

_RULE = re.compile(r"^\s*[?!]?[A-Za-z_][^:\n]*:", re.MULTILINE)
_INNER_SCHEMA = re.compile(r"failed to compile JSON schema: (.*?)(?: \d+ \| .*)?$")
_NAMED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Compiled:
    """A matcher at its beginning, and what it does not enforce.

    Attributes:
        matcher: fork it; the original stays at the beginning.
        relaxed: keywords of the schema that were left out.
    """

    matcher: Matcher
    relaxed: tuple[str, ...] = ()


class GuidanceMatcher:
    """llguidance's matcher of one answer; see `gate.Matcher`."""

    def __init__(self, native: Any, tokenizer: Any) -> None:
        self._native = native
        self._tokenizer = tokenizer

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""
        return bool(self._native.validate_tokens([token]) == 1)

    def allowed(self) -> npt.NDArray[np.int64]:
        """All tokens that may come next, ascending."""
        bits = np.frombuffer(self._native.compute_bitmask(), np.uint8)
        self._check()
        each = np.unpackbits(bits, bitorder="little")[: self._tokenizer.vocab_size]
        ids: npt.NDArray[np.int64] = np.flatnonzero(each)
        if len(ids) == 1 and not self.allows(int(ids[0])):
            return self._spelled()
        return ids

    def _spelled(self) -> npt.NDArray[np.int64]:
        """Tokens that begin a text that must come and is that of a control token.

        The engine's tokenizer cuts such a text to the control token, which no grammar takes for it.
        """
        text = bytes(self._native.compute_ff_bytes())[:_LONGEST_SPELLED]
        firsts = {self._tokenizer.tokenize_bytes(text[:n])[0] for n in range(1, len(text) + 1)}
        return np.array(sorted(filter(self.allows, firsts)), np.int64)

    def accept(self, token: int) -> None:
        """Go on behind a token."""
        self._native.consume_token(token)
        self._check()

    def takes(self, text: bytes) -> bool:
        """Go on behind a text that is not made of sampled tokens; False if it may not come."""
        tokens = self._tokenizer.tokenize_bytes(text)
        if self._native.validate_tokens(tokens) != len(tokens):
            return False
        return bool(self._native.consume_tokens(tokens))

    def forced(self) -> tuple[int, ...]:
        """The tokens that must come next, as the tokenizer would cut their text."""
        return tuple(self._native.compute_ff_tokens())

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._native.is_stopped())

    def fork(self) -> GuidanceMatcher:
        """An independent matcher at the same place."""
        return GuidanceMatcher(self._native.deep_copy(), self._tokenizer)

    def close(self) -> None:
        """Nothing: the object frees itself."""

    def _check(self) -> None:
        if self._native.is_error():
            raise EngineRefusedError(
                f"the grammar cannot go on: {_brief(self._native.get_error())}"
            )


class EngineMatcher:
    """The engine's own grammar sampler, for GBNF that llguidance does not take."""

    def __init__(self, vocabulary: Vocabulary, source: str) -> None:
        """Parse the grammar.

        Raises:
            EngineRefusedError: the engine does not accept it, or it could take too long.
        """
        if any(line.count("|") > MAX_ALTERNATIVES for line in source.splitlines()):
            raise EngineRefusedError(f"grammar: expected at most {MAX_ALTERNATIVES} alternatives")
        self._vocabulary = vocabulary
        self._source = source
        self._native = Grammar(vocabulary, source)
        self._candidates: Candidates | None = None

    def allows(self, token: int) -> bool:
        """Whether a token may come next; the engine takes control tokens for text."""
        control = self._vocabulary.is_control(token) and not self._vocabulary.is_end(token)
        return not control and self._native.allows(token)

    def allowed(self) -> npt.NDArray[np.int64]:
        """All tokens that may come next, ascending."""
        if self._candidates is None:
            self._candidates = Candidates(self._vocabulary.size)
        self._candidates.fill(np.zeros(self._vocabulary.size, np.float32))
        self._candidates.forbid(self._vocabulary.control_tokens)
        self._native.restrict(self._candidates)
        return self._candidates.possible()

    def accept(self, token: int) -> None:
        """Go on behind a token; never behind one that is not allowed: the process would end."""
        if not self.allows(token):
            raise EngineRefusedError("the grammar cannot go on: the token is not allowed")
        self._native.accept(token)

    def takes(self, text: bytes) -> bool:
        """Go on behind a text; False if it may not come."""
        for token in self._vocabulary.tokenize(text.decode("utf-8", "replace"), special=False):
            if not self.allows(token):
                return False
            self._native.accept(token)
        return True

    def forced(self) -> tuple[int, ...]:
        """Nothing: the engine does not say."""
        return ()

    @property
    def complete(self) -> bool:
        """Never: the end token ends the answer."""
        return False

    def fork(self) -> EngineMatcher:
        """A matcher at the beginning."""
        return EngineMatcher(self._vocabulary, self._source)

    def close(self) -> None:
        """Free the grammar."""
        self._native.close()


class Compiler:
    """Compiles for one vocabulary. Safe to call from any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """The tokenizer is made with the first constraint; it takes some tenths of a second."""
        self._vocabulary = vocabulary
        self._made = threading.Lock()
        self._tokenizer: Any = None
        self._kept: OrderedDict[tuple[str, str, str], Compiled] = OrderedDict()

    def compile(self, wanted: Constraint) -> Compiled:
        """A matcher of its own for one request.

        Raises:
            EngineRefusedError: what is wanted is malformed, too large, cannot be met, or, in
                strict mode, cannot be enforced in full.
        """
        with self._made:
            if self._tokenizer is None:
                self._tokenizer = _tokenizer(self._vocabulary)
            key = (wanted.kind, wanted.source, wanted.lead)
            kept = self._kept.get(key)
        if kept is None:
            kept = self._parse(*key)
            with self._made:
                self._kept[key] = kept
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)[1].matcher.close()
        if wanted.strict and kept.relaxed:
            names = ", ".join(kept.relaxed)
            raise EngineRefusedError(f"json schema: this cannot be enforced: {names}")
        return Compiled(kept.matcher.fork(), kept.relaxed)

    def _parse(self, kind: str, source: str, lead: str) -> Compiled:
        if len(source.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
            raise EngineRefusedError(f"{kind}: expected at most {MAX_SOURCE_BYTES} bytes")
        if "\0" in source:
            raise EngineRefusedError(f"{kind}: expected no zero character")
        match kind:
            case "json":
                return self._schema('{"type":"object"}', lead)
            case "json_schema":
                return self._schema(source, lead)
            case "regex":
                grammar = LLMatcher.grammar_from_regex(source)
                return Compiled(self._matcher(kind, _led(lead, grammar))[0])
            case "lark":
                return Compiled(self._lark(kind, source, lead))
            case "gbnf":
                return Compiled(self._gbnf(source, lead))
            case _:
                raise EngineRefusedError(
                    f"constraint: expected json, json_schema, regex, lark or gbnf, found {kind!r}"
                )

    def _schema(self, source: str, lead: str) -> Compiled:
        try:
            schema = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise EngineRefusedError(
                f"json schema: it is no JSON, or nested too deep: {error}"
            ) from error
        if not isinstance(schema, dict):
            raise EngineRefusedError("json schema: expected an object")
        try:
            matcher, warnings = self._matcher("json schema", _led(lead, _from_schema(source)))
        except EngineRefusedError as refusal:
            if "regex" not in str(refusal):
                raise
            left = self._without_patterns(schema)
            grammar = _led(lead, _from_schema(json.dumps(left)))
            matcher, warnings = self._matcher("json schema", grammar)
            warnings = ['"pattern"', *warnings]
        return Compiled(matcher, _relaxed(warnings))

    def _lark(self, name: str, source: str, lead: str) -> GuidanceMatcher:
        rules = len(_RULE.findall(source))
        if rules > MAX_RULES or len(source) > 2 * MAX_SOURCE_BYTES:
            raise EngineRefusedError(f"{name}: expected at most {MAX_RULES} rules, found {rules}")
        return self._matcher(name, _led(lead, LLMatcher.grammar_from_lark(source)))[0]

    def _gbnf(self, source: str, lead: str) -> Matcher:
        try:
            return self._lark("gbnf", gbnf_to_lark(source), lead)
        except EngineRefusedError as refusal:
            reason = str(refusal)
        except Exception as error:  # noqa: BLE001 - the converter raises bare exceptions
            reason = str(error)
        if lead:
            raise EngineRefusedError(f"gbnf: {_brief(reason)}")
        try:
            return EngineMatcher(self._vocabulary, source)
        except EngineRefusedError as refusal:
            raise EngineRefusedError(f"gbnf: {_brief(reason)}; {refusal}") from refusal

    def _matcher(self, name: str, grammar: str) -> tuple[GuidanceMatcher, list[str]]:
        native = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if not native.is_error():
            warnings = list(native.get_grammar_warnings())
            native.compute_bitmask()  # a grammar that never ends is known by its first mask
            if not native.is_error():
                return GuidanceMatcher(native, self._tokenizer), warnings
        raise EngineRefusedError(_refusal(name, native.get_error()))

    def _without_patterns(self, schema: Any) -> Any:
        """The schema without the patterns that llguidance does not take."""
        if isinstance(schema, list):
            return [self._without_patterns(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        left = {
            key: value if key in _DATA else self._without_patterns(value)
            for key, value in schema.items()
        }
        if isinstance(left.get("pattern"), str) and not self._takes_pattern(left["pattern"]):
            del left["pattern"]
        among = left.get("patternProperties")
        if isinstance(among, dict) and not all(map(self._takes_pattern, among)):
            # Without the patterns, what they allow would count as additional.
            del left["patternProperties"]
            left.pop("additionalProperties", None)
        return left

    def _takes_pattern(self, pattern: str) -> bool:
        grammar = _from_schema(json.dumps({"type": "string", "pattern": pattern}))
        return not LLMatcher.validate_grammar(grammar, self._tokenizer, limits=LIMITS)


def _tokenizer(vocabulary: Vocabulary) -> Any:
    """The vocabulary for llguidance, where a byte that no text holds marks control tokens.

    Raises:
        EngineRefusedError: the model has no token that ends an answer.
    """
    ends = list(vocabulary.end_tokens)
    if not ends:
        raise EngineRefusedError("the model has no token that ends an answer: it cannot be bound")
    pieces = [
        (b"\xff" if vocabulary.is_framing(token) else b"") + vocabulary.whole_piece(token)
        for token in range(vocabulary.size)
    ]
    return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=pieces,
        vocab_ptr=vocabulary.handle,
        tokenize_fptr=TOKENIZE_ADDRESS,
        eos_token=ends,
        slices=None,
    )


def _from_schema(source: str) -> str:
    try:
        return str(LLMatcher.grammar_from_json_schema(source, overrides=_OPTIONS))
    except ValueError as error:
        raise EngineRefusedError(f"json schema: {_brief(str(error))}") from error


def _led(lead: str, grammar: str) -> str:
    """A grammar of llguidance's behind what must be said before."""
    if not lead:
        return grammar
    guided = grammar.startswith('{"')  # else it is Lark
    body = json.loads(grammar)["grammars"][0] if guided else {"lark_grammar": grammar}
    head = {"name": "head", "lark_grammar": f"start: {lead} @body\n"}
    return json.dumps({"grammars": [head, {**body, "name": "body"}]})


def _relaxed(warnings: list[str]) -> tuple[str, ...]:
    """The keywords that warnings name, each once."""
    names: dict[str, None] = {}
    for warning in warnings:
        if warning.startswith("Unknown format"):
            names["format"] = None
        elif warning.startswith("oneOf"):
            names["oneOf"] = None
        else:
            names.update(dict.fromkeys(_NAMED.findall(warning) or [_brief(warning)]))
    return tuple(names)


def _refusal(name: str, reason: str) -> str:
    """Why a source is refused; the schemas that a grammar holds are refused as others are."""
    brief = _brief(reason)
    if inner := _INNER_SCHEMA.search(" ".join(reason.split())):
        keys = _NAMED.findall(inner[1]) if inner[1].startswith("Unimplemented") else []
        if keys:
            return f"json schema: this cannot be enforced: {', '.join(keys)}"
        brief = inner[1][:300]
    return f"{name}: it cannot be enforced: {brief}"


def _brief(reason: str) -> str:
    """The first words of a message, on one line."""
    return " ".join(reason.replace("<non-verbose/>", "").split())[:300]
