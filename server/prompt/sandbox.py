"""A Jinja environment in which a template can neither reach the process nor keep it busy.

Templates come with models, so they are as trustworthy as whoever packed the model. What bounds
them here:

 * attributes, methods, functions and filters are those of a list; the rest does not exist;
 * every turn of a loop, call, filter and operator is a step, and the steps are counted;
 * every text that is built counts its characters, before it is built where it could be huge;
 * containers count their elements, nested ones too, whenever they are built: a list that holds
   itself twice, forty times over, is small in memory but not when it is printed;
 * all of it ends after a time of CPU, looked at between the steps.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.utils
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.prompt.filters import FILTERS, replaced_length
from server.prompt.meter import METER

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        {
            *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum"),
            *("isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace"),
            *("istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix"),
            *("removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip"),
            *("split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
        }
    ),
    list: frozenset({"append", "copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
}
"""The methods of built-in types a template may call."""

_HELPERS = (
    jinja2.runtime.Macro,
    jinja2.runtime.LoopContext,
    jinja2.runtime.BlockReference,
    jinja2.utils.Cycler,
    jinja2.utils.Joiner,
)
"""What Jinja itself puts into a template's hands."""

_GLOBALS = frozenset({"range", "dict", "namespace", "cycler", "joiner"})

_MAX_NUMBER_BITS = 4096
"""Largest whole number. Why: far above any use, far below any cost."""

_WIDE_FORMAT = re.compile(r"\d{4}|\*|\{[^}]*\{")
"""A width of a thousand and more, or one that comes from the arguments."""


class Metered:
    """An iterable whose every element is a step; it has a length if the original has one."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        meter = METER.get()
        for value in self._values:
            meter.step()
            yield value

    def __len__(self) -> int:
        return len(self._values)


class _Generator(jinja2.compiler.CodeGenerator):
    """Compiles what Jinja would do inline into calls of the environment."""

    def visit_Concat(  # noqa: N802 - named by the base class
        self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame
    ) -> None:
        self._call("concatenate", node.nodes, frame)

    def visit_List(  # noqa: N802
        self, node: jinja2.nodes.List, frame: jinja2.compiler.Frame
    ) -> None:
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(  # noqa: N802
        self, node: jinja2.nodes.Tuple, frame: jinja2.compiler.Frame
    ) -> None:
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.made(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_Dict(  # noqa: N802
        self, node: jinja2.nodes.Dict, frame: jinja2.compiler.Frame
    ) -> None:
        self.write("environment.made(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Getitem(  # noqa: N802
        self, node: jinja2.nodes.Getitem, frame: jinja2.compiler.Frame
    ) -> None:
        part = node.arg
        if isinstance(part, jinja2.nodes.Slice):
            nothing = jinja2.nodes.Const(None)
            bounds = [bound or nothing for bound in (part.start, part.stop, part.step)]
            self._call("cut", [node.node, *bounds], frame)
        else:
            super().visit_Getitem(node, frame)

    def _call(
        self, method: str, nodes: Iterable[jinja2.nodes.Node], frame: jinja2.compiler.Frame
    ) -> None:
        self.write(f"environment.{method}(")
        for node in nodes:
            self.visit(node, frame)
            self.write(", ")
        self.write(")")


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` … ``{% endgeneration %}`` marks training data and does nothing here."""

    tags = {"generation"}  # noqa: RUF012 - named and typed by the base class

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment; a `METER` must be set whenever it compiles or renders."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _Generator

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, _Generation],
            optimized=False,
            finalize=_printable,
            cache_size=0,
        )
        self.globals = {name: self.globals[name] for name in _GLOBALS}
        self.filters = {**FILTERS, "_metered": Metered}

    def concatenate(self, *values: object) -> str:
        """``a ~ b``."""
        METER.get().convert(*values)
        return "".join(map(str, values))

    def made(self, container: Any) -> Any:
        """A list, tuple or dict the template has written."""
        METER.get().weigh(container)
        return container

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """``value[start:stop:step]``."""
        part = value[start:stop:step]
        _charge(part)
        return part

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Operators whose result can be much larger than what goes in."""
        meter = METER.get()
        meter.step()
        if operator == "%" and isinstance(left, str):
            if _WIDE_FORMAT.search(left):
                raise SecurityError("the format is too wide")
            meter.convert(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "*":
            _check_product(left, right)
        elif isinstance(left, str) and isinstance(right, str):
            meter.produce(len(left) + len(right))
        elif isinstance(left, list | tuple):
            meter.weigh(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call a template makes."""
        meter = METER.get()
        meter.step()
        if isinstance(obj, types.BuiltinMethodType):
            _check_method(obj, args)
        elif not self._is_helper(context, obj):
            raise SecurityError(f"{type(obj).__name__!r} may not be called")
        if isinstance(obj, jinja2.runtime.LoopContext):
            # A recursive loop: its elements count like those of the outer one.
            args = (Metered(args[0]), *args[1:]) if args else args
        else:
            # What a call is given it may put into one container.
            meter.weigh(*args, *kwargs.values())
        result = super().call(context, obj, *args, **kwargs)
        _charge(result)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Reading only, but appending to lists the template has made."""
        if type(obj) is list and attr == "append":
            return True
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` with widths below a thousand."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None
        source: str = value.__self__

        def bounded(*args: Any, **kwargs: Any) -> str:
            if _WIDE_FORMAT.search(source):
                raise SecurityError("the format is too wide")
            METER.get().convert(source, *args, *kwargs.values())
            return safe(*args, **kwargs)

        return _Helper(bounded)

    def _is_helper(self, context: Any, obj: Any) -> bool:
        owner = getattr(obj, "__self__", None)
        if isinstance(obj, (*_HELPERS, _Helper, jinja2.Undefined)) or isinstance(owner, _HELPERS):
            return True
        return any(obj is value for value in (*self.globals.values(), *context.parent.values()))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """The text of a block, a macro, or the whole prompt."""
        meter = METER.get()
        kept = []
        for part in parts:
            meter.produce(len(part))
            kept.append(part)
        return "".join(kept)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, "_metered", [], [], None, None)
        return tree


class _Helper:
    """A function of ours that a template may call."""

    def __init__(self, function: Callable[..., str]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        return self._function(*args, **kwargs)


def _printable(value: Any) -> Any:
    """What ``{{ value }}`` prints; its size is known before it is made."""
    if not isinstance(value, str):
        METER.get().convert(value)
    return value


def _charge(value: object) -> None:
    """Count a result: its own size only, what it holds has been counted when it was made."""
    if isinstance(value, str):
        METER.get().produce(len(value))
    elif isinstance(value, list | tuple | dict):
        METER.get().step(len(value))


def _check_method(method: types.BuiltinMethodType, args: tuple[Any, ...]) -> None:
    owner, name = method.__self__, method.__name__
    allowed = next((names for kind, names in _METHODS.items() if isinstance(owner, kind)), ())
    if name not in allowed:
        raise SecurityError(f"{type(owner).__name__}.{name} may not be called")
    if not isinstance(owner, str):
        return
    meter = METER.get()
    meter.produce(len(owner))
    if name == "join" and args:
        # A generator is a filter's; its elements are counted where it takes them from.
        values = args[0] if isinstance(args[0], list | tuple | dict | str) else ()
        meter.produce(len(owner) * len(values) + meter.weigh(values))
    elif name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) else ""
        meter.step(owner.count(separator) if separator else len(owner) // 4)
    elif name == "replace" and len(args) > 1:
        meter.produce(replaced_length(owner, str(args[0]), str(args[1])))


def _check_power(left: Any, right: Any) -> None:
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and left.bit_length() * max(right, 0) > _MAX_NUMBER_BITS:
        raise SecurityError("the number is too large")


def _check_product(left: Any, right: Any) -> None:
    meter = METER.get()
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str) and isinstance(times, int):
            meter.produce(len(value) * max(times, 0))
        elif isinstance(value, list | tuple) and isinstance(times, int):
            before = meter.steps
            meter.weigh(value)
            meter.step((before - meter.steps + len(value)) * max(times, 0))
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and left.bit_length() + right.bit_length() > _MAX_NUMBER_BITS:
        raise SecurityError("the number is too large")
