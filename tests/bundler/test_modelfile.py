from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.errors import PackError
from bundler.format.errors import ModelfileError
from bundler.format.modelfile import (
    DEPRECATED_PARAMETERS,
    PARAMETERS,
    Modelfile,
    decode,
    deprecated,
    parse,
    render,
)
from bundler.layers import model_layers

COMMAND_LIST = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", '
    '"renderer", "parser", "parameter", "message", or "requires"'
)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("FROM x\nHELLO y", 2, COMMAND_LIST),
        ("FROM x\n\n# c\n=1", 4, COMMAND_LIST),
        ("FROM2 x", 1, COMMAND_LIST),
        ("FROM=x", 1, COMMAND_LIST),
        ("FROM x\nMESSAGE tool hi", 2, 'message role must be one of "system", "user", or'),
        ("FROM x\nMESSAGE User hi", 2, "message role must be one of"),
        ("FROM x\nPARAMETER colour 1", 2, "unknown parameter 'colour'"),
        ("FROM x\nPARAMETER Temperature 1", 2, "unknown parameter 'Temperature'"),
        ("FROM x\nPARAMETER temperature hot", 2, "invalid float value [hot]"),
        ("FROM x\nPARAMETER temperature nan", 2, "invalid float value [nan]"),
        ("FROM x\nPARAMETER temperature inf", 2, "invalid float value [inf]"),
        ("FROM x\nPARAMETER temperature 1e999", 2, "invalid float value [1e999]"),
        ("FROM x\nPARAMETER num_ctx 4k", 2, "invalid int value [4k]"),
        ("FROM x\nPARAMETER num_ctx 1.5", 2, "invalid int value [1.5]"),
        ("FROM x\nPARAMETER num_ctx ٣", 2, "invalid int value"),
        ("FROM x\nPARAMETER use_mmap yes", 2, "invalid bool value [yes]"),
        ("FROM x\nPARAMETER", 2, "parameter: expected a name"),
        ("FROM x\nPARAMETER num-ctx 1", 2, "parameter: expected a name"),
        ("FROM x\nPARAMETER num_ctx", 2, "unexpected EOF: num_ctx"),
        ("FROM x\nMESSAGE user", 2, "unexpected EOF: user"),
        ("FROM", 1, "unexpected EOF"),
        ('FROM x\nSYSTEM "never closed', 2, "unexpected EOF"),
        ('FROM x\nSYSTEM """never closed"', 2, "unexpected EOF"),
        ('FROM x\nSYSTEM "', 2, "unexpected EOF"),
        ('FROM x\nSYSTEM """', 2, "unexpected EOF"),
        ('FROM x\nSYSTEM "closed" and more', 2, "unexpected EOF"),
        ("FROM x\nREQUIRES new", 2, "requires must be a valid semver (e.g. 0.14.0)"),
        ("", 0, "no FROM line"),
        ("# only\nSYSTEM x", 0, "no FROM line"),
    ],
)
def test_a_malformed_modelfile_is_refused_at_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(ModelfileError) as caught:
        parse(text)
    assert caught.value.line == line
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from x", Modelfile(from_=("x",))),
        ("FrOm\t x y ", Modelfile(from_=("x y",))),
        ("\ufeffFROM x\r\nFROM y\rSYSTEM s", Modelfile(from_=("x", "y"), system="s")),
        ("FROM x # not a comment", Modelfile(from_=("x # not a comment",))),
        ("  # comment\n  FROM x", Modelfile(from_=("x",))),
        ("FROM x\nSYSTEM one\nSYSTEM two", Modelfile(from_=("x",), system="two")),
        ('FROM "x"', Modelfile(from_=("x",))),
        ("FROM 'x'", Modelfile(from_=("'x'",))),
        ('FROM x\nSYSTEM ""', Modelfile(from_=("x",), system="")),
        ('FROM x\nSYSTEM """"""', Modelfile(from_=("x",), system="")),
        ('FROM x\nSYSTEM "a\nb"', Modelfile(from_=("x",), system="a\nb")),
        ('FROM x\nSYSTEM """\na "q"\n# b\n"""', Modelfile(from_=("x",), system='\na "q"\n# b\n')),
        ('FROM x\nSYSTEM "a" b\nc"', Modelfile(from_=("x",), system='a" b\nc')),
        ('FROM x\nSYSTEM """a"""  ', Modelfile(from_=("x",), system="a")),
        ("FROM x\nSYSTEM a\x00b\x07", Modelfile(from_=("x",), system="ab")),
        (
            "FROM x\nLICENSE a\nLICENSE b\nADAPTER c\nDRAFT d\nRENDERER r\nPARSER p",
            Modelfile(
                from_=("x",),
                licenses=("a", "b"),
                adapters=("c",),
                drafts=("d",),
                renderer="r",
                parser="p",
            ),
        ),
        (
            "FROM x\nMESSAGE user hi\nMESSAGE assistant hello there",
            Modelfile(from_=("x",), messages=(("user", "hi"), ("assistant", "hello there"))),
        ),
        ("FROM x\nREQUIRES 0.14.0", Modelfile(from_=("x",), requires="0.14.0")),
        (
            (
                "FROM x\nPARAMETER temperature 1\nPARAMETER use_mmap F\nPARAMETER seed -1\n"
                "PARAMETER stop \"<|im_end|>\"\nPARAMETER stop 'a'\nPARAMETER numa true"
            ),
            Modelfile(
                from_=("x",),
                parameters=(
                    ("temperature", 1.0),
                    ("use_mmap", False),
                    ("seed", -1),
                    ("stop", "<|im_end|>"),
                    ("stop", "'a'"),
                ),
            ),
        ),
    ],
)
def test_the_grammar_is_ollamas(text: str, expected: Modelfile) -> None:
    assert parse(text) == expected


def test_parameter_types_follow_the_table() -> None:
    samples = {
        "float": ("0.5", float),
        "int": ("5", int),
        "bool": ("true", bool),
        "text": ("s", str),
    }
    for name, kind in PARAMETERS.items():
        text, expected = samples[kind]
        ((_, value),) = parse(f"FROM x\nPARAMETER {name} {text}").parameters
        assert type(value) is expected


def test_parameters_become_ollamas_object() -> None:
    read = parse("FROM x\nPARAMETER stop a\nPARAMETER top_k 1\nPARAMETER stop b\nPARAMETER top_k 2")
    assert read.parameter_object() == {"stop": ["a", "b"], "top_k": 2}


def test_deprecated_parameters_are_dropped_and_named() -> None:
    text = "FROM x\n" + "".join(f"PARAMETER {name} 1\n" for name in sorted(DEPRECATED_PARAMETERS))
    assert parse(text).parameters == ()
    assert set(deprecated(text)) == DEPRECATED_PARAMETERS


def test_both_encodings_are_read() -> None:
    assert decode("FROM ä".encode("utf-16")) == "FROM ä"
    assert decode("FROM ä".encode("utf-8-sig")) == "FROM ä"
    with pytest.raises(ModelfileError, match="utf-8"):
        decode(b"FROM \xff")
    with pytest.raises(ModelfileError, match="at most"):
        decode(b"x" * ((4 << 20) + 1))


def test_a_file_of_open_quotes_is_refused_in_linear_work() -> None:
    with pytest.raises(ModelfileError):
        parse('FROM "' + "\n" * 1_000_000)


def modelfiles(letters: str) -> st.SearchStrategy[Modelfile]:
    texts = st.text(alphabet=st.sampled_from(letters), max_size=20)
    parameters = st.one_of(
        st.tuples(st.just("stop"), texts),
        st.tuples(st.just("num_ctx"), st.integers(-(10**17), 10**17)),
        st.tuples(st.just("temperature"), st.floats(allow_nan=False, allow_infinity=False)),
        st.tuples(st.just("use_mmap"), st.booleans()),
    )
    messages = st.tuples(st.sampled_from(["system", "user", "assistant"]), texts)
    return st.builds(
        Modelfile,
        from_=st.lists(texts, max_size=2).map(tuple),
        parameters=st.lists(parameters, max_size=4).map(tuple),
        template=st.none() | texts,
        system=st.none() | texts,
        adapters=st.lists(texts, max_size=2).map(tuple),
        drafts=st.lists(texts, max_size=1).map(tuple),
        licenses=st.lists(texts, max_size=2).map(tuple),
        messages=st.lists(messages, max_size=3).map(tuple),
        renderer=st.none() | texts,
        parser=st.none() | texts,
        requires=st.none() | st.just("0.14.0"),
    )


@settings(deadline=None, max_examples=200)
@given(modelfiles("ab \t\n#{}.'é"))
def test_every_modelfile_without_quotes_is_rendered_and_read_back_equal(
    modelfile: Modelfile,
) -> None:
    assert parse(render(modelfile), require_from=False) == modelfile


@settings(deadline=None, max_examples=200)
@given(modelfiles('ab \n"\r'))
def test_one_with_quotes_is_read_back_equal_or_refused(modelfile: Modelfile) -> None:
    """Lines that end like the quotes do, and carriage returns, have no spelling."""
    try:
        text = render(modelfile)
    except ModelfileError:
        return
    assert parse(text, require_from=False) == modelfile


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                "FROM",
                "system ",
                "PARAMETER ",
                "stop ",
                "MESSAGE ",
                "user ",
                '"',
                '"""',
                "\n",
                "x",
                "#",
            ]
        ),
        max_size=30,
    ).map("".join)
    | st.text(max_size=80)
)
def test_any_text_is_a_modelfile_that_renders_or_refused(text: str) -> None:
    try:
        read = parse(text, require_from=False)
    except ModelfileError:
        return
    assert parse(render(read), require_from=False) == read


@pytest.mark.parametrize("instruction", ["RENDERER r", "PARSER p"])
def test_what_a_bundle_does_not_carry_yet_is_refused(instruction: str) -> None:
    with pytest.raises(PackError, match=instruction.split(maxsplit=1)[0]):
        model_layers(parse(f"FROM x\n{instruction}"))


def test_layers_hold_what_ollamas_hold() -> None:
    read = parse(
        "FROM x\nTEMPLATE t\nSYSTEM s\nPARAMETER top_k 5\nPARAMETER stop a\nMESSAGE user ä\n"
        "LICENSE one\nLICENSE one"
    )
    layers: dict[str, Any] = dict(model_layers(read, licences=["two"]))
    assert layers == {
        "template": b"t",
        "system": b"s",
        "params": b'{"stop":["a"],"top_k":5}',
        "messages": '[{"content":"ä","role":"user"}]'.encode(),
        "license": b"two",
    }
    assert [role for role, _ in model_layers(read, licences=["two"])].count("license") == 2
    assert dict(model_layers(read, template="other"))["template"] == b"other"
    assert model_layers(Modelfile()) == ()


@pytest.mark.parametrize("value", ["a\rb", 'ends with "quotes"\nin "the" """\nmiddle"""\n'])
def test_a_text_no_modelfile_can_hold_is_refused_not_changed(value: str) -> None:
    with pytest.raises(ModelfileError, match="quotes can hold"):
        render(Modelfile(system=value))
