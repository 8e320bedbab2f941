"""What ``show`` prints as a Modelfile asks ``create`` for the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from appliance.creation import texts_of
from appliance.model import InstalledModel
from appliance.modelfiles import contents_of
from bundler.format.digest import Digest
from bundler.format.errors import ModelfileError
from bundler.format.modelfile import render
from bundler.format.name import ModelName
from server.api.body import Fields
from server.api.create import read_create

DIGEST = Digest("0" * 64)
BLOB = Path(f"sha256-{DIGEST.hex}")
LINES = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, categories=["L", "P", "Z"]))
TEXTS = st.lists(LINES, min_size=1, max_size=4).map("\n".join).filter(bool)
TEMPLATES = st.sampled_from(
    ["{{ .Prompt }}", '{{ .System }}\n"{{ .Prompt }}"\n', ' {{ if .System }}"{{ end }} ', '"x"']
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "top_k": st.integers(0, 1000),
        "seed": st.integers(-1, 2**40),
        "use_mmap": st.booleans(),
        "stop": st.lists(TEXTS, min_size=1, max_size=3),
    },
)


@given(
    template=st.none() | TEMPLATES,
    system=TEXTS | st.just(""),
    parameters=PARAMETERS,
    licenses=st.lists(TEXTS, max_size=2, unique=True).map(tuple),
    messages=st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS), max_size=2
    ).map(tuple),
    names=st.tuples(*[st.none() | st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True)] * 2),
    requires=st.sampled_from([None, "0.14.0", "soon"]),
)
def test_a_shown_model_is_asked_for_as_it_is(
    *,
    template: str | None,
    system: str,
    parameters: dict[str, Any],
    licenses: tuple[str, ...],
    messages: tuple[tuple[str, str], ...],
    names: tuple[str | None, str | None],
    requires: str | None,
) -> None:
    model = InstalledModel(
        name=ModelName(model="x"),
        digest=DIGEST,
        size_bytes=1,
        modified_at_s=0.0,
        model_path=BLOB,
        model_digest=DIGEST,
        template=template,
        system=system,
        parameters=parameters,
        licenses=licenses,
        messages=messages,
        adapters=(BLOB,),
        projectors=(),
        config={"renderer": names[0], "parser": names[1], "requires": requires},
        provenance=None,
    )
    try:
        text = render(contents_of(model, str))
    except ModelfileError:
        assume(False)
    body = {"model": "x", "modelfile": text}
    request = read_create(Fields(values=body, at=""))
    assert [kind for kind, _ in request.files] == [f"{DIGEST.hex}.gguf"]
    assert request.adapters == ((f"{DIGEST.hex}.gguf", str(DIGEST)),)
    assert (request.renderer, request.parser) == names
    assert request.requires == (requires if requires == "0.14.0" else None)
    assert texts_of(request, None) == texts_of(request, model)
    assert request.parameters == parameters
    assert (request.template, request.system or "") == (template, system)
