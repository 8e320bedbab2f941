from __future__ import annotations

from pathlib import Path

import pytest

from server.prompt.choice import GoTemplates, Offer, choose, prefers_jinja
from server.prompt.gotemplate.tools import Style

ROOT = Path(__file__).parents[1]
FORMATS = ROOT / "golden" / "gotemplate" / "formats"
DEMO_GO = (ROOT / "demo-model" / "ollama.template").read_text(encoding="utf-8")
DEMO_JINJA = (ROOT / "demo-model" / "chat_template.jinja").read_text(encoding="utf-8")
QWEN = (FORMATS / "qwen-tools.gotmpl").read_text(encoding="utf-8")
CHATML = (FORMATS / "chatml.gotmpl").read_text(encoding="utf-8")
FILL = "{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ else }}{{ .Prompt }}{{ end }}"
FORGETFUL = (
    "{{ range .Tools }}{{ . }}{{ end }}{{ range .Messages }}{{ .Content }}"
    "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ end }}"
)
SIMPLE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
BROKEN_GO = "{{ if }}"
BROKEN_JINJA = "{% if %}"
TOOLS = frozenset({"tools"})
THINKING = frozenset({"thinking"})
BOTH = TOOLS | THINKING
NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("layer", "jinja", "source"),
    [
        (None, None, "builtin"),
        ("", None, "builtin"),
        (" \n", SIMPLE, "jinja"),
        (None, SIMPLE, "jinja"),
        (CHATML, None, "go"),
        (CHATML, SIMPLE, "go"),
        (CHATML, DEMO_JINJA, "jinja"),
        (DEMO_GO, DEMO_JINJA, "go"),
        (DEMO_GO, SIMPLE, "go"),
        (FORGETFUL, DEMO_JINJA, "jinja"),
        (QWEN, DEMO_JINJA, "go"),
        (FILL, DEMO_JINJA, "go"),
        (BROKEN_GO, None, "go"),
        (BROKEN_GO, SIMPLE, "jinja"),
        (BROKEN_GO, BROKEN_JINJA, "go"),
        (CHATML, BROKEN_JINJA, "go"),
        (None, BROKEN_JINJA, "jinja"),
    ],
)
def test_template_is_chosen_as_ollama_does(
    layer: str | None, jinja: str | None, source: str
) -> None:
    choice = choose(layer=layer, jinja=jinja)
    assert choice.source == source
    assert choice.text == {"go": layer, "jinja": jinja, "builtin": "{{ .Prompt }}"}[source]
    assert (choice.go is None) == (source == "jinja" or layer == BROKEN_GO)
    assert bool(choice.fault) == (layer == BROKEN_GO or jinja == BROKEN_JINJA)


@pytest.mark.parametrize(
    ("layer", "jinja", "use", "source"),
    [
        (DEMO_GO, DEMO_JINJA, "off", "jinja"),
        (DEMO_GO, BROKEN_JINJA, "off", "go"),
        (DEMO_GO, None, "off", "go"),
        (None, None, "off", "builtin"),
        (CHATML, DEMO_JINJA, "on", "go"),
        (BROKEN_GO, DEMO_JINJA, "on", "jinja"),
        (None, DEMO_JINJA, "on", "jinja"),
    ],
)
def test_operator_decides_where_there_are_both(
    layer: str | None, jinja: str | None, use: GoTemplates, source: str
) -> None:
    assert choose(layer=layer, jinja=jinja, use=use).source == source


@pytest.mark.parametrize(
    ("go", "go_round", "jinja", "jinja_round", "preferred"),
    [
        (NONE, False, NONE, False, False),
        (NONE, False, THINKING, False, True),
        (NONE, False, TOOLS, True, True),
        (TOOLS, True, BOTH, False, False),
        (TOOLS, True, BOTH, True, True),
        (TOOLS, False, BOTH, False, True),
        (TOOLS, False, TOOLS, True, True),
        (TOOLS, True, TOOLS, True, False),
        (TOOLS, False, TOOLS, False, False),
        (THINKING, False, THINKING, True, False),
        (frozenset({"insert"}), False, BOTH, True, False),
        (BOTH, True, TOOLS, True, False),
    ],
)
def test_jinja_goes_first_only_where_it_can_more(
    go: frozenset[str],
    go_round: bool,  # noqa: FBT001 - columns of the table
    jinja: frozenset[str],
    jinja_round: bool,  # noqa: FBT001
    preferred: bool,  # noqa: FBT001
) -> None:
    offers = (
        Offer(capabilities=go, round_trips=go_round),
        Offer(capabilities=jinja, round_trips=jinja_round),
    )
    assert prefers_jinja(*offers) is preferred


@pytest.mark.parametrize(
    ("layer", "jinja", "capabilities"),
    [
        (None, None, NONE),
        (None, DEMO_JINJA, BOTH),
        (DEMO_GO, DEMO_JINJA, BOTH),
        (DEMO_GO, None, BOTH),
        (CHATML, None, NONE),
        (FILL, None, {"insert"}),
        (BROKEN_GO, None, NONE),
        (None, BROKEN_JINJA, NONE),
    ],
)
def test_capabilities_are_those_of_the_chosen_template(
    layer: str | None, jinja: str | None, capabilities: frozenset[str]
) -> None:
    assert choose(layer=layer, jinja=jinja).capabilities == capabilities


def test_tools_are_written_as_the_model_s_own_template_does_where_it_has_one() -> None:
    assert choose(layer=DEMO_GO, jinja=DEMO_JINJA).style is Style.AS_SENT
    assert choose(layer=DEMO_GO, jinja=None).style is Style.OLLAMA


def test_fault_of_a_layer_names_its_line() -> None:
    fault = choose(layer="\n{{ bogus }}", jinja=None).fault
    assert fault == 'the TEMPLATE layer is malformed: template: :2: function "bogus" not defined'
