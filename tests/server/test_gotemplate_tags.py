"""A template tells how its model marks thinking and tool calls."""

from __future__ import annotations

import pytest

from server.prompt.gotemplate.prompt import PromptTemplate


@pytest.mark.parametrize(
    ("source", "tags"),
    [
        ("{{ range .Messages }}{{ .Content }}{{ end }}", None),
        ("{{ .Thinking }}{{ .Messages }}", None),
        ("{{ range .Other }}<t>{{ .Thinking }}</t>{{ end }}{{ .Messages }}", None),
        ("{{ range .Messages }}{{ .Thinking }}{{ end }}", None),
        ("{{ range .Messages }}<t>{{ .Thinking }} {{ end }}", None),
        ("{{ range .Messages }}<t>\n{{ .Thinking }}\n</t>{{ end }}", ("<t>", "</t>")),
        (
            "{{ range $m := .Messages }}{{ if $m.A }}[T]{{ $m.Thinking }}[/T]{{ end }}{{ end }}",
            ("[T]", "[/T]"),
        ),
        (
            "{{ range $.Messages }}a{{ with .X }}{{ else }}b{{ .Thinking }}c{{ end }}d{{ end }}",
            ("b", "c"),
        ),
    ],
)
def test_thinking_stands_between_the_texts_around_it(
    source: str, tags: tuple[str, str] | None
) -> None:
    assert PromptTemplate(source).thinking_tags == tags


@pytest.mark.parametrize(
    ("source", "tag"),
    [
        ("{{ .Messages }}", "{"),
        ("{{ if .ToolCalls }}{{ .X }}[CALL]{{ end }}{{ .Messages }}", "{"),
        ("{{ if .ToolCalls }}\n[CALL] {{ .X }}{{ end }}{{ .Messages }}", "[CALL]"),
        ('{{ if .ToolCalls }}<c>\n{"name": {{ .X }}{{ end }}{{ .Messages }}', "<c>"),
        ('{{ if .ToolCalls }}{"name": {{ .X }}{{ end }}{{ .Messages }}', "{"),
        (
            "{{ if .Messages }}{{ else if .ToolCalls }}{{ range .ToolCalls }}<d>{{ end }}{{ end }}",
            "<d>",
        ),
        ("{{ range .Messages }}{{ range .ToolCalls }}<e>{{ end }}{{ end }}", "<e>"),
        ("{{ if .Messages }}x{{ else if .ToolCalls }}<f>{{ else }}y{{ end }}", "<f>"),
    ],
)
def test_tool_tag_is_the_first_text_of_the_block_for_calls(source: str, tag: str) -> None:
    assert PromptTemplate(source).tool_tag == tag
