"""A template tells how its model marks thinking."""

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
