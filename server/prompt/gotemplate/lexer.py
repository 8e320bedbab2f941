"""Cut the source of a Go template into tokens. Pure; the first stage of three.

Rules:
 * text is everything outside ``{{`` and ``}}``;
 * ``{{- `` and `` -}}`` drop the blanks of the text beside them; the blank in the marker counts,
   so that ``{{-3}}`` is a number;
 * a comment ``{{/* … */}}`` takes up its whole action and gives no token;
 * a mistake becomes an `Kind.ERROR` token, the last one: the parser decides when it is reached.

Names, numbers, and quotes are as in Go; what a number or a string means is read in `literals`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from server.prompt.gotemplate.literals import quote, utf8_length

LEFT = "{{"
RIGHT = "}}"
BLANKS = " \t\r\n"
_BLANK = frozenset(BLANKS)
LONG_TOKEN_BYTES = 10
"""A longer token is cut when an error shows it. Source: Go's parser."""


class Kind(Enum):
    """What a token is."""

    ERROR = auto()
    EOF = auto()
    TEXT = auto()
    LEFT = auto()
    RIGHT = auto()
    SPACE = auto()
    LEFT_PAREN = auto()
    RIGHT_PAREN = auto()
    PIPE = auto()
    ASSIGN = auto()
    DECLARE = auto()
    CHARACTER = auto()
    IDENTIFIER = auto()
    FIELD = auto()
    VARIABLE = auto()
    DOT = auto()
    NIL = auto()
    BOOL = auto()
    NUMBER = auto()
    COMPLEX = auto()
    CHAR_CONSTANT = auto()
    STRING = auto()
    RAW_STRING = auto()
    BLOCK = auto()
    BREAK = auto()
    CONTINUE = auto()
    DEFINE = auto()
    ELSE = auto()
    END = auto()
    IF = auto()
    RANGE = auto()
    TEMPLATE = auto()
    WITH = auto()


KEYWORDS = {
    "block": Kind.BLOCK,
    "break": Kind.BREAK,
    "continue": Kind.CONTINUE,
    "define": Kind.DEFINE,
    "else": Kind.ELSE,
    "end": Kind.END,
    "if": Kind.IF,
    "nil": Kind.NIL,
    "range": Kind.RANGE,
    "template": Kind.TEMPLATE,
    "with": Kind.WITH,
}
_IN_ANGLES = frozenset({*KEYWORDS.values(), Kind.DOT})
_SINGLE = {"=": Kind.ASSIGN, "|": Kind.PIPE, "(": Kind.LEFT_PAREN, ")": Kind.RIGHT_PAREN}


@dataclass(frozen=True, slots=True)
class Token:
    """One token; ``line`` is where it starts, from 1."""

    kind: Kind
    text: str
    line: int

    def __str__(self) -> str:
        if self.kind is Kind.EOF:
            return "EOF"
        if self.kind is Kind.ERROR:
            return self.text
        if self.kind in _IN_ANGLES:
            return f"<{self.text}>"
        if utf8_length(self.text) > LONG_TOKEN_BYTES:
            return f"{quote(self.text[:LONG_TOKEN_BYTES])}..."
        return quote(self.text)


class _LexError(Exception):
    """Ends the scan; carries the message of the error token."""


def tokens(source: str) -> Iterator[Token]:
    """Give the tokens of a template, then `Kind.EOF` or `Kind.ERROR`, and end."""
    return _Lexer(source).run()


class _Lexer:
    def __init__(self, source: str) -> None:
        self._source = source
        self._pos = 0
        self._start = 0
        self._depth = 0
        self._scanners: dict[str, Callable[[], Kind]] = {
            '"': self._string,
            "'": self._char,
            "`": self._raw,
            ":": self._declare,
            "$": self._variable,
        }
        self._breaks = [index for index, char in enumerate(source) if char == "\n"]

    def run(self) -> Iterator[Token]:
        inside = False
        while True:
            try:
                for token in self._action() if inside else self._text():
                    yield token
                    if token.kind in (Kind.LEFT, Kind.RIGHT):
                        inside = token.kind is Kind.LEFT
                    if token.kind is Kind.EOF:
                        return
            except _LexError as error:
                yield Token(Kind.ERROR, str(error), self._line(self._start))
                return

    def _line(self, position: int) -> int:
        return bisect_right(self._breaks, position - 1) + 1

    def _emit(self, kind: Kind) -> Token:
        token = Token(kind, self._source[self._start : self._pos], self._line(self._start))
        self._start = self._pos
        return token

    # Outside actions.

    def _text(self) -> Iterator[Token]:
        """Everything up to and with the next left delimiter, or to the end."""
        source, start = self._source, self._pos
        self._start = start
        found = source.find(LEFT, start)
        if found < 0:
            self._pos = len(source)
            if self._pos > start:
                yield self._emit(Kind.TEXT)
            yield self._emit(Kind.EOF)
            return
        after = found + len(LEFT)
        trim = source.startswith("-", after) and self._blank_at(after + 1)
        text = source[start:found]
        self._pos = start + len(text.rstrip(BLANKS)) if trim else found
        if self._pos > start:
            yield self._emit(Kind.TEXT)
        self._start = found
        body = after + 2 if trim else after
        if source.startswith("/*", body):
            self._start = body
            self._comment(body)
            return
        self._pos = after
        yield self._emit(Kind.LEFT)
        self._start = self._pos = body
        self._depth = 0

    def _comment(self, body: int) -> None:
        close = self._source.find("*/", body + 2)
        if close < 0:
            raise _LexError("unclosed comment")
        self._pos = close + 2
        if not self._at_right():
            raise _LexError("comment ends before closing delimiter")
        self._skip_right()

    def _blank_at(self, position: int) -> bool:
        return self._source[position : position + 1] in _BLANK

    def _trimmed_right_at(self, position: int) -> bool:
        return self._blank_at(position) and self._source.startswith("-" + RIGHT, position + 1)

    def _at_right(self) -> bool:
        return self._trimmed_right_at(self._pos) or self._source.startswith(RIGHT, self._pos)

    def _skip_right(self) -> None:
        """Go past the right delimiter, and the blanks behind it if it has a trim marker."""
        trim = self._trimmed_right_at(self._pos)
        if trim:
            self._pos += 2
            self._start = self._pos
        self._pos += len(RIGHT)
        if trim:
            while self._blank_at(self._pos):
                self._pos += 1

    # Inside actions.

    def _action(self) -> Iterator[Token]:
        """One token, or the right delimiter."""
        self._start = self._pos
        if self._at_right():
            if self._depth:
                raise _LexError("unclosed left paren")
            yield self._right()
            return
        char = self._peek()
        if char == "":
            raise _LexError("unclosed action")
        if char in BLANKS:
            yield from self._space()
            return
        yield self._emit(self._scan(char))

    def _right(self) -> Token:
        self._skip_right()
        return Token(Kind.RIGHT, RIGHT, self._line(self._start))

    def _peek(self) -> str:
        return self._source[self._pos : self._pos + 1]

    def _space(self) -> Iterator[Token]:
        while self._blank_at(self._pos):
            self._pos += 1
        if self._trimmed_right_at(self._pos - 1):
            self._pos -= 1
            if self._pos == self._start:
                yield self._right()
                return
        yield self._emit(Kind.SPACE)

    def _scan(self, char: str) -> Kind:
        following = self._source[self._pos + 1 : self._pos + 2]
        if char in _SINGLE:
            return self._single(char)
        if char in self._scanners:
            return self._scanners[char]()
        if char == "." and following and following not in "0123456789":
            return self._name(Kind.FIELD)
        if char in "+-.0123456789":
            return self._number()
        if _alphanumeric(char):
            return self._identifier()
        self._pos += 1
        if char.isascii() and char.isprintable():
            return Kind.CHARACTER
        raise _LexError(f"unrecognized character in action: {_code_point(char)}")

    def _single(self, char: str) -> Kind:
        self._pos += 1
        self._depth += {"(": 1, ")": -1}.get(char, 0)
        if self._depth < 0:
            raise _LexError("unexpected right paren")
        return _SINGLE[char]

    def _declare(self) -> Kind:
        self._pos += 2
        if self._source[self._pos - 1 : self._pos] != "=":
            raise _LexError("expected :=")
        return Kind.DECLARE

    def _at_terminator(self) -> bool:
        char = self._peek()
        return char == "" or char in BLANKS or char in ".,|:)(" or self._at_right()

    def _require_terminator(self) -> None:
        if not self._at_terminator():
            raise _LexError(f"bad character {_code_point(self._peek())}")

    def _name(self, kind: Kind) -> Kind:
        """A field or a variable; its dot or dollar sign stands at the position."""
        self._pos += 1
        if self._at_terminator():
            return Kind.DOT if kind is Kind.FIELD else kind
        self._skip_alphanumeric()
        self._require_terminator()
        return kind

    def _variable(self) -> Kind:
        return self._name(Kind.VARIABLE)

    def _skip_alphanumeric(self) -> None:
        while _alphanumeric(self._peek()):
            self._pos += 1

    def _identifier(self) -> Kind:
        self._skip_alphanumeric()
        self._require_terminator()
        word = self._source[self._start : self._pos]
        if word in ("true", "false"):
            return Kind.BOOL
        return KEYWORDS.get(word, Kind.IDENTIFIER)

    def _quoted(self, *, end: str, kind: Kind, what: str) -> Kind:
        self._pos += 1
        while True:
            char = self._peek()
            self._pos += 1
            if char == "\\":
                char = self._peek()
                self._pos += 1
                if char not in ("", "\n"):
                    continue
            if char in ("", "\n"):
                raise _LexError(f"unterminated {what}")
            if char == end:
                return kind

    def _string(self) -> Kind:
        return self._quoted(end='"', kind=Kind.STRING, what="quoted string")

    def _char(self) -> Kind:
        return self._quoted(end="'", kind=Kind.CHAR_CONSTANT, what="character constant")

    def _raw(self) -> Kind:
        close = self._source.find("`", self._pos + 1)
        if close < 0:
            raise _LexError("unterminated raw quoted string")
        self._pos = close + 1
        return Kind.RAW_STRING

    def _number(self) -> Kind:
        kind = Kind.NUMBER
        good = self._scan_number()
        if good and self._peek() in ("+", "-"):
            kind = Kind.COMPLEX
            good = self._scan_number() and self._source[self._pos - 1] == "i"
        if not good:
            raise _LexError(f"bad number syntax: {quote(self._source[self._start : self._pos])}")
        return kind

    def _scan_number(self) -> bool:
        """Take what looks like a number; whether it ends where a number may."""
        self._accept("+-")
        digits = _DECIMAL
        if self._accept("0"):
            for prefix, others in _PREFIXES:
                if self._accept(prefix):
                    digits = others
                    break
        self._accept_run(digits)
        if self._accept("."):
            self._accept_run(digits)
        exponent = {_DECIMAL: "eE", _HEXADECIMAL: "pP"}.get(digits, "")
        if self._accept(exponent):
            self._accept("+-")
            self._accept_run(_DECIMAL)
        self._accept("i")
        if _alphanumeric(self._peek()):
            self._pos += 1
            return False
        return True

    def _accept(self, valid: str) -> bool:
        char = self._peek()
        if char and char in valid:
            self._pos += 1
            return True
        return False

    def _accept_run(self, valid: str) -> None:
        while self._accept(valid):
            pass


_DECIMAL = "0123456789_"
_HEXADECIMAL = "0123456789abcdefABCDEF_"
_PREFIXES = (("xX", _HEXADECIMAL), ("oO", "01234567_"), ("bB", "01_"))


def _alphanumeric(char: str) -> bool:
    """Letters, decimal digits and the underscore: what Go allows in a name."""
    return char == "_" or char.isalpha() or char.isdecimal()


def _code_point(char: str) -> str:
    """As Go's ``%#U`` writes it."""
    shown = f" '{char}'" if char.isprintable() else ""
    return f"U+{ord(char):04X}{shown}"
