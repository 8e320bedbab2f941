"""Which template makes a model's prompts: its TEMPLATE layer, its file's Jinja, or the plain one.

Rules, as Ollama has them:
 * a TEMPLATE layer is used, unless the file's Jinja can more: everything the layer can and
   something besides, or the same and a whole round of tools where the layer loses calls or
   results;
 * without such a layer it is the Jinja, and without either ``{{ .Prompt }}``;
 * a TEMPLATE layer that does not parse gives way to a Jinja that does.

What a template can do is found out by rendering, not by looking for words. Pure.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Literal

from server.chat import Message, ToolCall
from server.prompt.abilities import probe
from server.prompt.gotemplate.messages import PromptInput
from server.prompt.gotemplate.prompt import DEFAULT_TEMPLATE, PromptTemplate
from server.prompt.gotemplate.template import Limits, TemplateError
from server.prompt.gotemplate.tools import Style
from server.prompt.jinja import JinjaTemplate, TemplateBrokenError

GoTemplates = Literal["auto", "on", "off"]
"""Whether TEMPLATE layers are used: unless the Jinja can more, always, or only without a Jinja."""

TemplateSource = Literal["go", "jinja", "builtin"]

_NAME, _VALUE, _RESULT = "probename", "probevalue", "proberesult"
_ROUND = PromptInput(
    messages=(
        Message(role="user", content="probeuser"),
        Message(
            role="assistant",
            tool_calls=(ToolCall(id="probe0001", name=_NAME, arguments={"key": _VALUE}),),
        ),
        Message(role="tool", content=_RESULT, tool_name=_NAME, tool_call_id="probe0001"),
    )
)
_PROBE_LIMITS = Limits(steps=100_000)
"""A tenth of a rendering's. Why: three short messages take a few hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The template a model's prompts are made with.

    Attributes:
        source: where it comes from; ``builtin`` is the plain one.
        text: the template itself.
        capabilities: of ``tools``, ``insert`` and ``thinking`` those it has.
        go: the template parsed, if it is a Go template that parses.
        style: how a Go template writes tools. A model that carries a Jinja was trained on what
            that writes; of others nothing is known but what Ollama feeds them.
        fault: what is wrong with a template of the model, be it this or the one passed over.
    """

    source: TemplateSource
    text: str
    capabilities: frozenset[str] = frozenset()
    go: PromptTemplate | None = None
    style: Style = Style.OLLAMA
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one template can do.

    Attributes:
        capabilities: of ``tools``, ``insert`` and ``thinking`` those it has.
        round_trips: calls and results of tools come out again.
    """

    capabilities: frozenset[str]
    round_trips: bool


def choose(*, layer: str | None, jinja: str | None, use: GoTemplates = "auto") -> Choice:
    """Choose between the TEMPLATE layer and the file's own template; either may be absent.

    Args:
        layer: the TEMPLATE layer.
        jinja: the file's own.
        use: whether the layer is used where there are both.
    """
    if layer is None or not layer.strip():
        if jinja is None:
            return Choice(source="builtin", text=DEFAULT_TEMPLATE, go=PromptTemplate())
        return _jinja_choice(jinja)
    if jinja is None:
        return _go_choice(layer, Style.OLLAMA)
    go, own = _go_choice(layer, Style.AS_SENT), _jinja_choice(jinja)
    if own.fault:
        return replace(go, fault=go.fault or own.fault)
    if go.go is None:
        return replace(own, fault=go.fault)
    if use == "auto":
        use = "off" if prefers_jinja(_offer_of_go(go.go), _offer_of_jinja(jinja)) else "on"
    return own if use == "off" else go


def _jinja_choice(source: str) -> Choice:
    try:
        capabilities = _offer_of_jinja(source).capabilities
    except TemplateBrokenError as error:
        return Choice(source="jinja", text=source, fault=str(error))
    return Choice(source="jinja", text=source, capabilities=capabilities)


def _go_choice(source: str, style: Style) -> Choice:
    try:
        go = PromptTemplate(source)
    except TemplateError as error:
        return Choice(source="go", text=source, fault=f"the TEMPLATE layer is malformed: {error}")
    return Choice(source="go", text=source, capabilities=go.capabilities, go=go, style=style)


def prefers_jinja(go: Offer, jinja: Offer) -> bool:
    """Whether the file's own template can more than the TEMPLATE layer."""
    if jinja.capabilities > go.capabilities:
        return jinja.round_trips or not go.round_trips
    same = jinja.capabilities == go.capabilities and "tools" in go.capabilities
    return same and jinja.round_trips and not go.round_trips


def _offer_of_go(template: PromptTemplate) -> Offer:
    try:
        shown = template.render(_ROUND, today=dt.date(2000, 1, 1), limits=_PROBE_LIMITS)
    except TemplateError:
        shown = ""
    whole = all(word in shown for word in (_NAME, _VALUE, _RESULT))
    return Offer(capabilities=template.capabilities, round_trips=whole)


def _offer_of_jinja(source: str) -> Offer:
    can = probe(JinjaTemplate(source))
    has = {"tools": can.tools, "thinking": can.thinking}
    return Offer(
        capabilities=frozenset(name for name, there in has.items() if there),
        round_trips=can.calls and can.results,
    )
