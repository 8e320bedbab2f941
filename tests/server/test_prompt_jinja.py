from __future__ import annotations

import contextlib
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompt.jinja import JinjaTemplate, TemplateBrokenError, TemplateRefusedError
from server.prompt.meter import Budget

DEMO = Path(__file__).parents[1] / "demo-model"
CASES = json.loads((DEMO / "golden.json").read_text())["cases"]
USER = {"role": "user", "content": "hello"}
LIMIT = Budget(cpu_s=30.0)


def render(source: str, *, budget: Budget | None = LIMIT, **variables: Any) -> str:
    return JinjaTemplate(source, budget=budget).render([USER], **variables)


EXPENSIVE = {
    "nested ranges": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "string product": "{{ 'a' * 10**9 }}",
    "product from the left": "{{ 10**9 * 'a' }}",
    "list product": "{% set x = ([1] * 10000) * 10000 %}",
    "huge power": "{{ 10 ** (10 ** 10) }}",
    "huge product": (
        "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}"
        "{% endfor %}"
    ),
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling macro": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(90) }}"
    ),
    "doubling by +": (
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}"
    ),
    "doubling by ~": (
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}"
    ),
    "doubling by block": (
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set t %}{{ ns.x }}"
        "{{ ns.x }}{% endset %}{% set ns.x = t %}{% endfor %}"
    ),
    "doubling by list": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
        "{% endfor %}{{ ns.x }}"
    ),
    "doubling by dict": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
        "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}"
    ),
    "doubling by append": (
        "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set b = [] %}"
        "{% set _ = b.append(ns.x) %}{% set _ = b.append(ns.x) %}{% set ns.x = b %}"
        "{% endfor %}{{ ns.x }}"
    ),
    "doubling by varargs": (
        "{% set ns = namespace(x=[1]) %}{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
        "{% for i in range(60) %}{{ f(ns.x, ns.x) }}{% endfor %}{{ ns.x }}"
    ),
    "list that holds itself": "{% set x = [] %}{% set _ = x.append(x) %}{{ x }}",
    "namespace that holds itself": "{% set ns = namespace() %}{% set ns.n = ns %}{{ ns }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "flat recursive loop": (
        "{% for x in range(99999) recursive %}{% if loop.depth < 3 %}{{ loop(range(99999)) }}"
        "{% endif %}{% endfor %}"
    ),
    "wide %": "{{ '%1000000000d' % 1 }}",
    "wide % from an argument": "{{ '%*d' % (1000000000, 1) }}",
    "wide format": "{{ '{:>1000000000}'.format(1) }}",
    "wide nested format": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "replace method": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "join method": "{{ ('b' * 100000).join(['a'] * 10000) }}",
    "join filter": "{{ range(99999) | list | join('b' * 100000) }}",
    "indent": "{{ ('a\n' * 100000) | indent('x' * 100000) }}",
    "much output": (
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ 'a' * 100 }}{% endfor %}"
        "{% endfor %}"
    ),
    "slices kept": (
        "{% set s = 'a' * 1000000 %}{% set l = [] %}{% for i in range(9999) %}"
        "{% set _ = l.append(s[i:]) %}{% endfor %}"
    ),
}

FORBIDDEN = {
    "class": "{{ ''.__class__.__mro__ }}",
    "function globals": "{{ raise_exception.__globals__['os'] }}",
    "init of a helper": "{{ cycler.__init__.__globals__ }}",
    "format into attributes": "{{ '{0.__class__.__mro__}'.format('')[0] }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "center filter": "{{ 'a' | center(10**9) }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "encode": "{{ 'a'.encode() }}",
    "attr filter": "{{ messages | attr('append') }}",
    "lorem ipsum": "{{ lipsum(1000) }}",
    "include": "{% include '/etc/passwd' %}",
    "appending to what was given": "{{ messages.append(1) }}",
    "changing what was given": "{{ messages[0].update({'role': 'x'}) }}",
    "extending": "{% set x = [] %}{{ x.extend([1]) }}",
    "class method": "{{ dict.fromkeys('a') }}",
}


class TestTemplateIsRefused:
    @pytest.mark.parametrize("name", EXPENSIVE)
    def test_template_that_would_run_for_ever_or_fill_memory_ends_early(self, name: str) -> None:
        with pytest.raises(TemplateBrokenError):
            render(EXPENSIVE[name], budget=Budget(steps=300_000, characters=8 << 20))

    @pytest.mark.parametrize("name", FORBIDDEN)
    def test_template_cannot_reach_the_process(self, name: str) -> None:
        with pytest.raises(TemplateBrokenError):
            render(FORBIDDEN[name])

    def test_template_that_raises_gives_its_own_words(self) -> None:
        with pytest.raises(TemplateRefusedError, match="roles must alternate"):
            render("{{ raise_exception('roles must alternate') }}")

    def test_time_is_bounded_apart_from_steps(self) -> None:
        with pytest.raises(TemplateBrokenError, match="too long"):
            render(EXPENSIVE["nested ranges"], budget=Budget(cpu_s=0.0))

    @pytest.mark.parametrize("source", ["{% if %}", "{{ 1 +", "{% for x in y %}", "{{ x.y.z }}"])
    def test_faulty_template_is_broken_not_a_crash(self, source: str) -> None:
        with pytest.raises(TemplateBrokenError):
            render(source)

    def test_constant_is_not_computed_beyond_the_budget_while_compiling(self) -> None:
        with pytest.raises(TemplateBrokenError):
            render("{{ ('a' * 1000000) | replace('a', 'b' * 1000000) | upper }}")

    @given(st.text(alphabet="{}%# abforinseti'\"()|.[]=~*+0123456789\n-", max_size=60))
    @settings(deadline=None, max_examples=150)
    def test_any_text_renders_or_is_broken(self, source: str) -> None:
        with contextlib.suppress(TemplateBrokenError, TemplateRefusedError):
            render(source, budget=Budget(steps=100_000, characters=1 << 20))


class TestTemplateIsRenderedAsTransformersDoes:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case["messages"][-1]["content"][:30])
    def test_demo_template_gives_the_recorded_prompt(self, case: dict[str, Any]) -> None:
        template = JinjaTemplate((DEMO / "chat_template.jinja").read_text())

        assert template.render(case["messages"], case["tools"]) == case["prompt"]

    @pytest.mark.parametrize(
        ("source", "expected"),
        {
            "blocks are trimmed": ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
            "loop controls": (
                "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "01",
            ),
            "appending to own lists": ("{% set x = [] %}{% set _ = x.append(1) %}{{ x }}", "[1]"),
            "namespace": ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
            "tojson keeps characters": ("{{ {'a': 'é<>'} | tojson }}", '{"a": "é<>"}'),
            "tojson with indent": ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
            "tojson of a generator": ("{{ [1] | map('string') | tojson }}", '["1"]'),
            "generation tag": ("{% generation %}a{% endgeneration %}", "a"),
            "length of a loop": (
                ("{% for m in messages %}{{ loop.length }}{{ loop.last }}{% endfor %}"),
                "1True",
            ),
            "filtered loop": (
                ("{% for i in range(5) if i is odd %}{{ i }}{{ loop.last }}{% endfor %}"),
                "1False3True",
            ),
            "unpacking": ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
            "slices": ("{{ 'abcdef'[1:-1:2] }}{{ messages[1:] }}", "bd[]"),
            "undefined is empty": ("{{ nothing }}{% for x in nothing %}{% endfor %}", ""),
            "concatenation": ("{{ 'a' ~ 1 ~ none }}", "a1None"),
            "string methods": ("{{ ' a,b '.strip().split(',') | join('-') }}", "a-b"),
            "no tools": ("{{ tools is none }}{{ tools is defined }}", "TrueTrue"),
            "no html escapes": ("{{ '<a>' }}{{ '<a>' | safe }}{{ '<' | e }}", "<a><a>&lt;"),
            "selecting": (
                ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"),
                "1",
            ),
            "adding lists": ("{{ (messages + [1]) | length }}", "2"),
            "caller": (
                ("{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}x{% endcall %}"),
                "<x>",
            ),
            "block set": ("{% set x %}a{% endset %}{{ x }}", "a"),
            "format": ("{{ '%s-%02d' % ('a', 3) }}{{ '{}'.format(1) }}", "a-031"),
            "cycler": ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}", "ab"),
            "loop cycle": ("{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{% endfor %}", "aba"),
            "indent": ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
            "recursive loop": (
                (
                    "{% for x in [1, [2]] recursive %}{{ loop(x) if x is iterable else x }}"
                    "{% endfor %}"
                ),
                "12",
            ),
        }.values(),
    )
    def test_feature_of_the_language_works(self, source: str, expected: str) -> None:
        assert render(source) == expected

    def test_date_is_the_given_clock_s(self) -> None:
        template = JinjaTemplate(
            "{{ strftime_now('%d %b %Y') }}",
            now=lambda: dt.datetime(2026, 8, 1, tzinfo=dt.UTC),
        )

        assert template.render([USER]) == "01 Aug 2026"

    def test_special_tokens_and_variables_are_there(self) -> None:
        source = "{{ bos_token }}{{ eos_token }}{{ enable_thinking }}{{ add_generation_prompt }}"
        template = JinjaTemplate(source, bos_token="<s>", eos_token="</s>")

        assert template.render([USER], enable_thinking=False) == "<s></s>FalseTrue"

    def test_long_conversation_stays_within_the_default_budget(self) -> None:
        template = JinjaTemplate(
            (DEMO / "chat_template.jinja").read_text(), budget=Budget(cpu_s=60.0)
        )
        messages = [USER, {"role": "assistant", "content": "x" * 2000}] * 500

        assert len(template.render(messages)) > 1_000_000
