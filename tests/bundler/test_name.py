from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format.errors import ModelNameError
from bundler.format.name import ModelName

FIRST = string.ascii_letters + string.digits + "_"


def part(rest: str) -> st.SearchStrategy[str]:
    return st.builds(
        lambda first, more: first + more,
        st.sampled_from(FIRST),
        st.text(alphabet=FIRST + rest, max_size=20),
    )


names = st.builds(
    ModelName,
    host=part(".-:").filter(lambda host: "/" not in host),
    namespace=part("-"),
    model=part(".-"),
    tag=part(".-"),
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":tag",
        "model:",
        "/model",
        "a/b/c/d",
        "a//c",
        ".hidden",
        "-dash",
        "../../etc/passwd",
        "a/../b",
        "name space",
        "name\n",
        "na\0me",
        "name@sha256:" + "0" * 64,
        "m" * 81,
        "model:" + "t" * 81,
        "h" * 256 + "/ns/model",
        "names.pace/model",
        "modèle",
        "a:b:c",
        "host/ns/model:tag/x",
    ],
)
def test_what_is_no_model_name_is_refused(text: str) -> None:
    with pytest.raises(ModelNameError):
        # A line break at the end would be trimmed; what is tested is one inside.
        ModelName.parse(text.replace("\n", "\nx"))


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("demo", "registry.ollama.ai/library/demo:latest", "demo:latest"),
        ("demo:v2", "registry.ollama.ai/library/demo:v2", "demo:v2"),
        ("me/demo", "registry.ollama.ai/me/demo:latest", "me/demo:latest"),
        ("hf.co/me/demo:Q4_K_M", "hf.co/me/demo:Q4_K_M", "hf.co/me/demo:Q4_K_M"),
        (
            "localhost:5000/me/demo",
            "localhost:5000/me/demo:latest",
            "localhost:5000/me/demo:latest",
        ),
        ("https://host/me/demo:x", "host/me/demo:x", "host/me/demo:x"),
        (" demo ", "registry.ollama.ai/library/demo:latest", "demo:latest"),
        (
            "host/library/demo",
            "host/library/demo:latest",
            "host/library/demo:latest",
        ),
    ],
)
def test_names_are_completed_as_ollama_does(text: str, full: str, short: str) -> None:
    name = ModelName.parse(text)
    assert (name.full(), name.short(), str(name)) == (full, short, short)


@settings(deadline=None)
@given(names)
def test_both_forms_are_read_back_as_the_same_name(name: ModelName) -> None:
    assert ModelName.parse(name.full()) == name
    assert ModelName.parse(name.short()) == name


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except ModelNameError:
        return
    for component in name.parts():
        assert component
        assert not component.startswith(".")
        assert "/" not in component
        assert "\0" not in component


def test_names_that_differ_in_case_fold_to_the_same() -> None:
    assert ModelName.parse("Demo:V1").folded() == ModelName.parse("demo:v1").folded()
