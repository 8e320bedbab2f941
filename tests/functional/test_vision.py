"""Images through every dialect, with the official clients and the real engine."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from PIL import Image

from appliance.cli import run
from tests.fakes.projectors import SIDE, TOKENS, Kind, png, png_of, write_projector
from tests.fakes.random_models import WIDE, write_random
from tests.functional.live import LiveServer, put_model

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
RED = png((250, 10, 10))
HALF = png(lambda x, _: (255 * (x > 14),) * 3)
"""The random projector and the demo model tell them apart within a few words."""
ASK = "What colour is it?"
GREEDY: Any = {"temperature": 0, "num_predict": 8}

pytestmark = pytest.mark.engine


KINDS: list[tuple[str, Kind]] = [("sectioned", "qwen2vl_merger"), ("sighted", "gemma3")]
"""Models and projectors whose pictures are placed, or computed, in another way."""


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{coded(data)}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("vision")
    with LiveServer(folder, engine=True, max_body_bytes=8 << 20) as live:
        weights = DEMO.read_bytes()
        fitting = write_projector(folder / "fitting.gguf", seed=2).read_bytes()
        other = write_projector(folder / "other.gguf", width=192).read_bytes()
        put_model(live.store, "sees", folder, weights=weights, projector=fitting)
        put_model(live.store, "blind", folder, weights=weights)
        put_model(live.store, "mixed", folder, weights=weights, projector=other)
        yield live


@pytest.fixture(scope="module")
def address(server: LiveServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_ollama(address: str) -> None:
    with ollama.Client(host=address) as client:
        assert "vision" in (client.show("sees").capabilities or [])
        assert "vision" not in (client.show("blind").capabilities or [])

        def generate(*images: bytes) -> ollama.GenerateResponse:
            said: ollama.GenerateResponse = client.generate(
                model="sees",
                prompt=ASK,
                images=list(images),
                options=GREEDY,
                think=False,
                logprobs=True,
            )
            return said

        none, red, half, both, swapped = (
            generate(*images) for images in ((), (RED,), (HALF,), (RED, HALF), (HALF, RED))
        )
        texts = {one.response for one in (none, red, half)}
        assert len(texts) == 3
        assert both.logprobs != swapped.logprobs
        assert generate(RED).response == red.response
        assert red.prompt_eval_count == (none.prompt_eval_count or 0) + TOKENS
        assert min(red.context or [0]) >= 0
        turn = {"role": "user", "content": ASK, "images": [RED]}
        said = client.chat(model="sees", messages=[turn], options=GREEDY, think=False)
        assert said.message.content == red.response


def test_openai_chat_and_responses(address: str) -> None:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:

        def chat(data: bytes) -> str:
            parts: list[Any] = [
                {"type": "text", "text": ASK},
                {"type": "image_url", "image_url": {"url": data_url(data)}},
            ]
            said = client.chat.completions.create(
                model="sees",
                messages=[{"role": "user", "content": parts}],
                temperature=0,
                max_tokens=8,
                reasoning_effort="none",
            )
            return said.choices[0].message.content or ""

        def respond(data: bytes) -> str:
            parts: list[Any] = [
                {"type": "input_text", "text": ASK},
                {"type": "input_image", "image_url": data_url(data), "detail": "auto"},
            ]
            said = client.responses.create(
                model="sees",
                input=[{"role": "user", "content": parts}],
                temperature=0,
                max_output_tokens=8,
                reasoning={"effort": "none"},
            )
            return said.output_text

        assert chat(RED) != chat(HALF)
        assert respond(RED) == chat(RED)
        fetched: list[Any] = [{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]
        with pytest.raises(openai.BadRequestError, match="image URLs are not currently supported"):
            client.chat.completions.create(
                model="sees", messages=[{"role": "user", "content": fetched}]
            )


def test_anthropic(address: str) -> None:
    with anthropic.Anthropic(base_url=address, api_key="unused", max_retries=0) as client:

        def blocks(data: bytes) -> list[Any]:
            source = {"type": "base64", "media_type": "image/png", "data": coded(data)}
            return [{"type": "image", "source": source}, {"type": "text", "text": ASK}]

        def say(data: bytes) -> str:
            message = client.messages.create(
                model="sees",
                max_tokens=8,
                messages=[{"role": "user", "content": blocks(data)}],
                extra_body={"temperature": 0, "thinking": {"type": "disabled"}},
            )
            return "".join(block.text for block in message.content if block.type == "text")

        assert say(RED) != say(HALF)
        with_it = client.messages.count_tokens(
            model="sees", messages=[{"role": "user", "content": blocks(RED)}]
        )
        without = client.messages.count_tokens(
            model="sees", messages=[{"role": "user", "content": ASK}]
        )
        assert with_it.input_tokens == without.input_tokens + TOKENS
        far: Any = {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}}
        with pytest.raises(anthropic.BadRequestError, match="Only base64 images are supported"):
            client.messages.create(
                model="sees", max_tokens=8, messages=[{"role": "user", "content": [far]}]
            )


def test_what_stands_for_images_is_shown_as_in_ollama_and_cannot_be_written(
    server: LiveServer,
) -> None:
    wish = {"model": "sees", "stream": False, "_debug_render_only": True}
    turns = [
        {"role": "user", "content": "first [img] then [img]", "images": [coded(RED), coded(HALF)]},
        {"role": "user", "content": "[img-0] <__media__>", "images": [coded(HALF)]},
    ]
    eyes = server.post("/api/show", model="sees")[1]["projector_info"]
    assert eyes["clip.vision.image_size"] == SIDE
    status, answer = server.post("/api/chat", messages=turns, **wish)
    assert status == 200
    info = answer["_debug_info"]
    assert info["image_count"] == 3
    assert "first [img-0] then [img-1]" in info["rendered_template"]
    assert "[img-2][img-0] <__media__>" in info["rendered_template"]
    written = {"role": "user", "content": "[img-0] <__media__>"}
    counts = [
        server.post("/api/chat", model="sees", messages=[turn], options={"num_predict": 1},
                    stream=False)[1]["prompt_eval_count"]
        for turn in (written, {**written, "images": [coded(RED)]})
    ]  # fmt: skip
    assert counts[1] == counts[0] + TOKENS


def as_file(data: bytes, format_: str, **how: Any) -> bytes:
    """A PNG in another format."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, format_, **how)
    return file.getvalue()


def said_of(server: LiveServer, data: bytes) -> tuple[str, float]:
    """The answer to an image, and how sure its first word is."""
    wish = {"model": "sees", "prompt": ASK, "options": GREEDY, "think": False, "logprobs": True}
    status, answer = server.post("/api/generate", **wish, stream=False, images=[coded(data)])
    assert status == 200, answer
    return answer["response"], answer["logprobs"][0]["logprob"]


def test_pixels_of_every_format_reach_the_model(server: LiveServer) -> None:
    for picture in (RED, HALF):
        text, sure = said_of(server, picture)
        for exact in ({"lossless": True}, {"lossless": True, "exact": True, "method": 6}):
            same, surely = said_of(server, as_file(picture, "WEBP", **exact))
            assert same == text
            assert surely == pytest.approx(sure, abs=0.01)
        clear = Image.open(io.BytesIO(picture)).convert("RGBA")
        file = io.BytesIO()
        clear.save(file, "WEBP", lossless=True)
        assert said_of(server, file.getvalue())[0] == text
        for format_, how in (
            ("JPEG", {"quality": 100, "subsampling": 0}),
            ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}),
            ("WEBP", {"quality": 100}),
        ):
            near, nearly = said_of(server, as_file(picture, format_, **how))
            assert near == text
            assert nearly == pytest.approx(sure, abs=0.3)


def test_broken_webp_costs_its_request_only(server: LiveServer) -> None:
    whole = as_file(HALF, "WEBP", quality=100)
    broken = whole[:60] + bytes(len(whole) - 60)
    wish = {"model": "sees", "prompt": "x", "stream": False}
    status, answer = server.post("/api/generate", **wish, images=[coded(broken)])
    assert (status, answer) == (400, {"error": "image 0: broken: it cannot be decoded"})
    assert said_of(server, whole)[0]


def test_model_made_of_a_modelfile_sees_in_every_dialect(
    server: LiveServer, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(DEMO.read_bytes())
    write_projector(tmp_path / "mmproj.gguf", seed=2)
    (tmp_path / "Modelfile").write_text(
        "FROM ./model.gguf\nFROM ./mmproj.gguf\nPARAMETER temperature 0\nPARAMETER num_predict 8\n"
    )
    host = f"127.0.0.1:{server.port}"
    assert run(["create", "looks", "-f", str(tmp_path / "Modelfile"), "--host", host]) == 0
    assert "vision" in server.post("/api/show", model="looks")[1]["capabilities"]

    def native(data: bytes) -> str:
        turn = {"role": "user", "content": ASK, "images": [coded(data)]}
        body = {"model": "looks", "messages": [turn], "stream": False, "think": False}
        told: str = server.post("/api/chat", **body)[1]["message"]["content"]
        return told

    def compatible(data: bytes) -> str:
        image = {"type": "image_url", "image_url": {"url": data_url(data)}}
        turn = {"role": "user", "content": [{"type": "text", "text": ASK}, image]}
        body = {"model": "looks", "messages": [turn], "reasoning_effort": "none"}
        (choice,) = server.post("/v1/chat/completions", **body)[1]["choices"]
        return str(choice["message"]["content"])

    def third(data: bytes) -> str:
        source = {"type": "base64", "media_type": "image/png", "data": coded(data)}
        blocks = [{"type": "image", "source": source}, {"type": "text", "text": ASK}]
        turns = [{"role": "user", "content": blocks}]
        body = {"model": "looks", "max_tokens": 8, "messages": turns}
        found = server.post("/v1/messages", **body, thinking={"type": "disabled"})[1]["content"]
        return "".join(block["text"] for block in found if block["type"] == "text")

    for ask in (native, compatible, third):
        assert ask(RED)
        assert ask(RED) != ask(HALF)
    assert native(RED) == compatible(RED)


@pytest.mark.parametrize(("model", "kind"), KINDS)
def test_models_of_other_kinds_see(
    server: LiveServer, tmp_path: Path, model: str, kind: Kind
) -> None:
    weights = write_random(model, tmp_path / "m.gguf").read_bytes()
    eyes = write_projector(tmp_path / "p.gguf", kind=kind, width=WIDE).read_bytes()
    put_model(server.store, model, tmp_path, weights=weights, projector=eyes)
    assert "vision" in server.post("/api/show", model=model)[1]["capabilities"]
    wish = {"model": model, "prompt": "It is [img] red", "raw": True, "stream": False}
    counts, answers = set(), set()
    for image in (RED, HALF):
        status, answer = server.post("/api/generate", **wish, options=GREEDY, images=[coded(image)])
        assert status == 200, answer
        counts.add(answer["prompt_eval_count"])
        answers.add(answer["response"])
    assert (len(counts), len(answers)) == (1, 2)


BROKEN = [
    (b"", "image 0: expected PNG, JPEG or WebP, found nothing"),
    (b"hello", "image 0: expected PNG, JPEG or WebP, found other bytes"),
    (b"RIFF\x10\0\0\0WEBPVP8 ", "image 0: broken WebP: it ends too early"),
    (RED[:-20], "image 0: broken PNG: it ends too early"),
    (png_of(28, 28, zlib.compress(bytes(100))),
     "image 0: broken PNG: its pixels are not as many as it says"),
    (png_of(28, 28, zlib.compress(bytes(64 << 20))),
     "image 0: broken PNG: its pixels are not as many as it says"),
    (png_of(28, 28, b"no deflate"), "image 0: broken PNG: its data cannot be unpacked"),
    (png_of(9999, 9999, b""),
     "image 0: expected at most 16777216 pixels and 16384 a side, found 9999 by 9999"),
    (png_of(0, 5, b""), "image 0: expected pixels, found 0 by 5"),
    (b"\xff\xd8\xff\xe0\x00\x04ab", "image 0: broken JPEG: a marker is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "text"), BROKEN)
def test_an_image_that_is_none_is_refused(server: LiveServer, data: bytes, text: str) -> None:
    status, answer = server.post("/api/generate", model="sees", prompt="x", images=[coded(data)])
    assert (status, answer) == (400, {"error": text})


def test_refusals(server: LiveServer) -> None:
    image = coded(RED)
    turn = {"role": "user", "content": "x", "images": [image]}
    name = "registry.ollama.ai/library/blind:latest"
    refusals: list[tuple[str, dict[str, Any], str]] = [
        ("/api/generate", {"model": "blind", "prompt": "x", "images": [image]},
         f"{name} does not support vision"),
        ("/api/chat", {"model": "blind", "messages": [turn]}, f"{name} does not support vision"),
        ("/api/generate", {"model": "sees", "prompt": "x", "images": [image], "suffix": "y"},
         "images: expected none beside a suffix"),
        ("/api/generate", {"model": "sees", "prompt": "x", "images": [image] * 33},
         "images: expected at most 32, found 33"),
        ("/api/generate", {"model": "sees", "prompt": "x", "images": ["%"]},
         "images[0]: expected base64 string, found other text"),
    ]  # fmt: skip
    for path, body, text in refusals:
        assert server.post(path, **body) == (400, {"error": text})


def test_a_tiny_and_a_long_image_are_seen(server: LiveServer) -> None:
    for image in (png((1, 2, 3), 1, 1), png((1, 2, 3), 3000, 1)):
        status, answer = server.post(
            "/api/generate", model="sees", prompt="x", images=[coded(image)], stream=False,
            options={"num_predict": 1},
        )  # fmt: skip
        assert status == 200, answer


def test_a_projector_of_another_model_is_refused_before_the_load(server: LiveServer) -> None:
    status, answer = server.post("/api/generate", model="mixed", prompt="x", stream=False)
    assert status == 500
    assert answer["error"] == (
        "mixed:latest: projector: expected one for a model of width 256, found one for another "
        "(width 192)"
    )
    assert all(one.name != "mixed" for one in server.scheduler.loaded())


def test_images_that_do_not_fit_the_context_are_refused(server: LiveServer) -> None:
    status, answer = server.post(
        "/api/generate", model="sees", prompt="word " * 3000, images=[coded(RED)], stream=False
    )
    assert status == 400
    assert "longer than the context length" in answer["error"]
