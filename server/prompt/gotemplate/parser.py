"""From the tokens of a Go template to its tree. Pure; the second stage of three.

Rules:
 * the errors, their words and their lines are those of Go's ``text/template``;
 * a template without a name is the main one; ``define`` and ``block`` add named ones;
 * a name may be defined again only if one of the two is blank;
 * a variable must be declared before it is used, a function must be known;
 * nesting is bounded, so that a template cannot exhaust the interpreter's stack. ``else if``
   does not nest here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal as Choice

from server.prompt.gotemplate.errors import TemplateError
from server.prompt.gotemplate.lexer import Kind, Token
from server.prompt.gotemplate.literals import clean, quote
from server.prompt.gotemplate.nodes import Action, Body, Branch, Call, Jump, Node, Pipe, Range, Text
from server.prompt.gotemplate.pipes import PipeParser, Stream

MAX_SOURCE_CHARS = 256 << 10
"""256 Ki characters. Why: the longest template of a public model is below 32 Ki; parsing this
many takes up to two seconds."""

_STRINGS = frozenset({Kind.STRING, Kind.RAW_STRING})
_Stop = Choice[Kind.END, Kind.ELSE]


def parse_trees(source: str, functions: frozenset[str]) -> dict[str, Body]:
    """Parse a template: its named bodies, the main one under the empty name.

    Args:
        source: the whole text.
        functions: names that may be called.

    Raises:
        TemplateError: with the line where Go would see the mistake.
    """
    if len(source) > MAX_SOURCE_CHARS:
        raise TemplateError(f"source: expected at most {MAX_SOURCE_CHARS} characters")
    trees: dict[str, Body] = {}
    _Tree(Stream(clean(source)), trees, functions).main()
    return trees


class _Tree(PipeParser):
    """Parses one template; the named ones in it have a tree each, on the same stream."""

    def __init__(self, stream: Stream, trees: dict[str, Body], functions: frozenset[str]) -> None:
        super().__init__(stream, functions)
        self._trees = trees
        self._ranges = 0
        self._controls: dict[Kind, Callable[[Token], Node | _Stop]] = {
            Kind.BLOCK: self._block,
            Kind.BREAK: self._break,
            Kind.CONTINUE: self._continue,
            Kind.ELSE: self._else,
            Kind.END: self._end,
            Kind.IF: self._if,
            Kind.RANGE: self._range,
            Kind.TEMPLATE: self._call,
            Kind.WITH: self._with,
        }

    # Whole templates.

    def main(self) -> None:
        nodes: list[Node] = []
        while self._stream.peek().kind is not Kind.EOF:
            if self._stream.peek().kind is Kind.LEFT:
                delimiter = self._stream.next()
                keyword = self._stream.next_solid()
                if keyword.kind is Kind.DEFINE:
                    self._inner().definition()
                    continue
                self._stream.push(delimiter, keyword)
            node = self._text_or_action()
            if isinstance(node, Kind):
                raise self._error(f"unexpected {_written_stop(node)}")
            nodes.append(node)
        self._add("", tuple(nodes))

    def definition(self) -> None:
        context = "define clause"
        token = self._stream.next_solid()
        if token.kind not in _STRINGS:
            raise self._unexpected(token, context)
        name = self._unquote(token)
        self._expect_right(context)
        body, stop = self._body()
        if stop is not Kind.END:
            raise self._error(f"unexpected {_written_stop(stop)} in {context}")
        self._add(name, body)

    def block(self, name: str, context: str) -> None:
        line = self._stream.line
        body, stop = self._body()
        if stop is not Kind.END:
            # Unlike for a definition, Go blames the line where the block begins.
            raise TemplateError(f"unexpected {_written_stop(stop)} in {context}", line=line)
        self._add(name, body)

    def _inner(self) -> _Tree:
        return _Tree(self._stream, self._trees, self._functions)

    def _add(self, name: str, body: Body) -> None:
        known = self._trees.get(name)
        if known is None or _is_blank(known):
            self._trees[name] = body
        elif not _is_blank(body):
            raise self._error(f"template: multiple definition of template {quote(name)}")

    # Bodies and control actions.

    def _body(self) -> tuple[Body, _Stop]:
        """Nodes up to ``end`` or ``else``, and which of them it was."""
        self._deeper("max block depth exceeded")
        nodes: list[Node] = []
        while self._stream.peek_solid().kind is not Kind.EOF:
            node = self._text_or_action()
            if isinstance(node, Kind):
                self._stream.nesting -= 1
                return tuple(nodes), node
            nodes.append(node)
        raise self._error("unexpected EOF")

    def _text_or_action(self) -> Node | _Stop:
        token = self._stream.next_solid()
        if token.kind is Kind.TEXT:
            return Text(text=token.text)
        if token.kind is not Kind.LEFT:
            raise self._unexpected(token, "input")
        self._action_line = token.line
        node = self._action()
        self._action_line = 0
        return node

    def _action(self) -> Node | _Stop:
        token = self._stream.next_solid()
        if token.kind in self._controls:
            return self._controls[token.kind](token)
        self._stream.push(token)
        return Action(pipe=self._pipe("command", Kind.RIGHT))

    def _end(self, _token: Token) -> _Stop:
        self._expect_right("end")
        return Kind.END

    def _if(self, _token: Token) -> Branch:
        return self._branch("if", Kind.IF)

    def _with(self, _token: Token) -> Branch:
        return self._branch("with", Kind.WITH)

    def _break(self, _token: Token) -> Jump:
        return self._jump("break")

    def _continue(self, _token: Token) -> Jump:
        return self._jump("continue")

    def _jump(self, kind: Choice["break", "continue"]) -> Jump:
        written = f"{{{{{kind}}}}}"
        self._expect_right(written)
        if self._ranges == 0:
            raise self._error(f"{written} outside {{{{range}}}}")
        return Jump(kind=kind)

    def _else(self, _token: Token) -> _Stop:
        """``else``; the ``if`` or ``with`` that may follow stays for `_branch`."""
        if self._stream.peek_solid().kind not in (Kind.IF, Kind.WITH):
            self._expect_right("else")
        return Kind.ELSE

    def _branch(self, kind: Choice["if", "with"], keyword: Kind) -> Branch:
        mark = len(self._declared)
        arms: list[tuple[Pipe, Body]] = []
        otherwise: Body = ()
        while True:
            pipe = self._pipe(kind, Kind.RIGHT)
            body, stop = self._body()
            arms.append((pipe, body))
            if stop is Kind.END:
                break
            if self._stream.peek().kind is not keyword:
                otherwise = self._final_body()
                break
            self._stream.next()
        self._forget(mark)
        return Branch(kind=kind, arms=tuple(arms), otherwise=otherwise)

    def _range(self, _token: Token) -> Range:
        mark = len(self._declared)
        pipe = self._pipe("range", Kind.RIGHT)
        self._ranges += 1
        body, stop = self._body()
        self._ranges -= 1
        otherwise = self._final_body() if stop is Kind.ELSE else ()
        self._forget(mark)
        return Range(pipe=pipe, body=body, otherwise=otherwise)

    def _final_body(self) -> Body:
        body, stop = self._body()
        if stop is not Kind.END:
            raise self._error(f"expected end; found {_written_stop(stop)}")
        return body

    def _block(self, token: Token) -> Call:
        context = "block clause"
        name = self._template_name(context)
        pipe = self._pipe(context, Kind.RIGHT)
        self._inner().block(name, context)
        return Call(name=name, pipe=pipe, line=token.line)

    def _call(self, token: Token) -> Call:
        context = "template clause"
        name = self._template_name(context)
        following = self._stream.next_solid()
        if following.kind is Kind.RIGHT:
            return Call(name=name, pipe=None, line=token.line)
        self._stream.push(following)
        return Call(name=name, pipe=self._pipe(context, Kind.RIGHT), line=token.line)

    def _template_name(self, context: str) -> str:
        token = self._stream.next_solid()
        if token.kind not in _STRINGS:
            raise self._unexpected(token, context)
        return self._unquote(token)


def _written_stop(stop: _Stop) -> str:
    return "{{end}}" if stop is Kind.END else "{{else}}"


def _is_blank(body: Body) -> bool:
    return all(isinstance(node, Text) and not node.text.strip() for node in body)
