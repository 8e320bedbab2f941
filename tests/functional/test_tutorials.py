"""What people's tutorials and programs do against Ollama, against the server and the real engine.

Each test is a program as such guides have it, with the bodies these clients send: null options,
empty lists, fields nobody here has heard of, and no ``Content-Type``.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import ollama
import openai
import pytest
import requests

from tests.appliance.sites import trust
from tests.fakes.forge import TRUSTED, forge, tiny_model
from tests.fakes.projectors import png, write_projector
from tests.functional.live import LiveServer, put_model

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
SKY = "Why is the sky blue?"
TURN: Any = {"role": "user", "content": SKY}
SHORT = {"temperature": 0, "num_predict": 12}
WAIT_S = 120
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("tutorials")
    media = folder / "media"
    media.mkdir()
    forge({"F32": tiny_model(1)}, name="onstick").write(media)
    with LiveServer(folder, engine=True, max_body_bytes=8 << 20, sources=(media,)) as live:
        trust(live.store, TRUSTED)
        weights = DEMO.read_bytes()
        projector = write_projector(folder / "projector.gguf", seed=2).read_bytes()
        put_model(live.store, "demo", folder, weights=weights)
        put_model(live.store, "team/demo:v1", folder, weights=weights)
        put_model(live.store, "sees", folder, weights=weights, projector=projector)
        yield live


@pytest.fixture(scope="module")
def url(server: LiveServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def post(url: str, path: str, body: Mapping[str, Any]) -> Any:
    answer = requests.post(f"{url}{path}", json=body, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_requests_reads_a_stream_line_by_line(url: str) -> None:
    body = {"model": "demo", "prompt": SKY, "options": SHORT}
    said = ""
    with requests.post(f"{url}/api/generate", json=body, stream=True, timeout=WAIT_S) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            piece = json.loads(line)
            said += piece["response"] or piece.get("thinking", "")
            if piece["done"]:
                rate = piece["eval_count"] / piece["eval_duration"] * 1e9
                assert rate > 0
                context = piece["context"]
    assert said
    again = post(url, "/api/generate", {**body, "context": context, "stream": False})
    assert again["prompt_eval_count"] > len(context)


def test_requests_says_what_is_wrong(url: str) -> None:
    answer = requests.post(f"{url}/api/chat", json={"model": "llama3", "messages": []}, timeout=9)
    assert (answer.status_code, answer.json()) == (404, {"error": "model 'llama3' not found"})


def test_a_body_without_a_type_is_json(url: str) -> None:
    """``curl -d`` sends a form's content type, and old scripts send none."""
    data = json.dumps({"model": "demo", "prompt": SKY, "stream": False, "options": SHORT})
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = requests.post(
            f"{url}/api/generate", data=data.encode(), headers=headers, timeout=WAIT_S
        )
        assert answer.json()["done"] is True


def test_aiohttp_asks_many_things_at_once(url: str) -> None:
    async def ask(session: aiohttp.ClientSession, number: int) -> str:
        body = {"model": "demo", "prompt": f"{number}?", "stream": False, "think": False,
                "options": SHORT}  # fmt: skip
        async with session.post(f"{url}/api/generate", json=body) as answer:
            assert answer.status == 200
            found: str = (await answer.json())["response"]
            return found

    async def batch() -> list[str]:
        patience = aiohttp.ClientTimeout(total=WAIT_S)
        async with aiohttp.ClientSession(timeout=patience) as session:
            return await asyncio.gather(*(ask(session, number) for number in range(8)))

    answers = asyncio.run(batch())
    assert len(answers) == 8
    assert all(answers)


def test_a_small_rag_finds_what_it_was_told(url: str) -> None:
    """Embed documents, embed the question, take the nearest, and ask with it in the prompt."""
    documents = ["The sky is blue because of Rayleigh scattering.", "Bread is made of flour."]
    vectors = post(url, "/api/embed", {"model": "demo", "input": documents})["embeddings"]
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in vectors)
    (asked,) = post(url, "/api/embed", {"model": "demo", "input": documents[0]})["embeddings"]
    scores = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in vectors]
    assert scores.index(max(scores)) == 0
    old = post(url, "/api/embeddings", {"model": "demo", "prompt": documents[1]})["embedding"]
    assert len(old) == len(asked)
    prompt = f"Using this data: {documents[0]}. Respond to this prompt: {SKY}"
    answer = post(
        url, "/api/generate",
        {"model": "demo", "prompt": prompt, "stream": False, "options": SHORT},
    )  # fmt: skip
    assert answer["prompt_eval_count"] > 10


def test_preload_and_unload_by_keep_alive(url: str) -> None:
    def loaded() -> set[str]:
        models = requests.get(f"{url}/api/ps", timeout=WAIT_S).json()["models"]
        return {model["name"] for model in models}

    assert post(url, "/api/generate", {"model": "demo"})["done_reason"] == "load"
    assert "demo:latest" in loaded()
    assert post(url, "/api/chat", {"model": "demo", "keep_alive": -1})["done_reason"] == "load"
    gone = post(url, "/api/generate", {"model": "demo", "keep_alive": 0})
    assert gone["done_reason"] == "unload"
    for _ in range(200):
        if "demo:latest" not in loaded():
            break
    else:
        pytest.fail("the model did not leave")


def test_a_health_monitor_is_content(url: str, server: LiveServer) -> None:
    assert requests.get(url, timeout=9).text == "Ollama is running"
    assert requests.head(url, timeout=9).status_code == 200
    version = requests.get(f"{url}/api/version", timeout=9).json()["version"]
    assert tuple(map(int, version.split("."))) > (0, 5, 0)
    assert requests.get(f"{url}/api/tags", timeout=9).json()["models"]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=9)
    for _ in range(3):  # one connection for all probes
        connection.request("HEAD", "/")
        assert connection.getresponse().read() == b""
    connection.close()


def test_a_model_is_made_from_the_text_of_a_modelfile(url: str) -> None:
    text = 'FROM demo\nPARAMETER temperature 1\nSYSTEM """\nYou are Mario.\n"""\n'
    body = {"name": "mario", "modelfile": text, "stream": False}
    assert post(url, "/api/create", body) == {"status": "success"}
    assert "You are Mario." in post(url, "/api/show", {"name": "mario"})["system"]
    assert requests.delete(f"{url}/api/delete", json={"name": "mario"}, timeout=9).ok


def test_ollama_python_does_all_it_can(url: str) -> None:
    with ollama.Client(host=url) as client:
        assert [step.status for step in client.pull("onstick", stream=True)][-1] == "success"
        assert "onstick:latest" in {one.model for one in client.list().models}
        created = client.create(model="brief", from_="demo", system="Be brief.")
        assert created.status == "success"
        assert client.show("brief").modelinfo
        assert client.copy("brief", "twin").status == "success"
        for name in ("brief", "twin", "onstick"):
            assert client.delete(name).status == "success"
        with pytest.raises(ollama.ResponseError, match="not found") as caught:
            client.delete("brief")
        assert caught.value.status_code == 404
        assert len(client.embed(model="demo", input=["a", "b"]).embeddings) == 2
        seen = client.generate(
            model="sees", prompt="What is this?", images=[png((250, 10, 10))], options=SHORT
        )
        assert (seen.prompt_eval_count or 0) > 4
        with pytest.raises(ollama.ResponseError, match="file does not exist"):
            client.pull("nowhere")


def test_ollama_python_asynchronously(url: str) -> None:
    async def talk() -> tuple[str, int]:
        client = ollama.AsyncClient(host=url)
        stream = await client.chat(
            model="demo", messages=[TURN], stream=True, options=SHORT, think=False
        )
        said = "".join([part.message.content or "" async for part in stream])
        names = {one.model for one in (await client.list()).models}
        assert "demo:latest" in names
        both = await asyncio.gather(
            *(client.generate(model="demo", prompt=text, options=SHORT) for text in ("a", "b"))
        )
        await client._client.aclose()
        return said, len(both)

    said, number = asyncio.run(talk())
    assert said
    assert number == 2


def test_openai_python_does_all_it_can(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="ollama", max_retries=0) as client:
        off: Any = {"model": "demo", "reasoning_effort": "none", "temperature": 0}
        turns: Any = [{"role": "developer", "content": "Be brief."}, TURN]
        stream = client.chat.completions.create(messages=turns, stream=True, max_tokens=12, **off)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        asked: Any = [{"role": "user", "content": "What is the weather in Lima?"}]
        called: Any = client.chat.completions.create(
            messages=asked, tools=[WEATHER], **off
        ).choices[0]
        assert called.finish_reason == "tool_calls"
        assert json.loads(called.message.tool_calls[0].function.arguments) == {"city": "Lima"}
        schema: Any = {
            "type": "json_schema",
            "json_schema": {
                "name": "sky",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {"blue": {"type": "boolean"}},
                    "required": ["blue"],
                    "additionalProperties": False,
                },
            },
        }
        bound: Any = client.chat.completions.create(
            messages=[TURN], response_format=schema, max_tokens=40, **off
        )
        assert set(json.loads(bound.choices[0].message.content)) == {"blue"}
        coded = client.embeddings.create(model="demo", input=["a", "b"])
        plain = client.embeddings.create(model="demo", input="a", encoding_format="float")
        # One text or two in a step: the sums are made in another order.
        assert coded.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-3)
        assert client.models.retrieve("team/demo:v1").id == "team/demo:v1"
        assert "demo:latest" in {model.id for model in client.models.list()}
        with pytest.raises(openai.NotFoundError, match="model 'gpt-4' not found"):
            client.chat.completions.create(model="gpt-4", messages=[TURN])


NULLS = dict.fromkeys(
    (
        "mirostat", "mirostat_eta", "mirostat_tau", "num_ctx", "num_gpu", "num_thread",
        "num_predict", "repeat_last_n", "repeat_penalty", "temperature", "seed", "stop", "tfs_z",
        "top_k", "top_p",
    )
)  # fmt: skip
"""What langchain-ollama sends of the options nobody set."""


def test_what_langchain_sends(url: str) -> None:
    body = {
        "model": "demo",
        "messages": [{**TURN, "images": [], "tool_calls": []}],
        "stream": True,
        "format": "",
        "tools": [],
        "keep_alive": None,
        "think": None,
        "options": {**NULLS, **SHORT},
    }
    answer = requests.post(f"{url}/api/chat", json=body, timeout=WAIT_S)
    *_, last = map(json.loads, answer.text.splitlines())
    assert last["done"] is True
    called = {
        **body,
        "stream": False,
        "think": False,
        "options": {**NULLS, "temperature": 0},
        "messages": [{"role": "user", "content": "What is the weather in Lima?"}],
        "tools": [WEATHER],
    }
    (call,) = post(url, "/api/chat", called)["message"]["tool_calls"]
    assert call["function"]["name"] == "get_current_weather"
    vectors = post(
        url, "/api/embed", {"model": "demo", "input": ["a"], "options": NULLS, "keep_alive": None}
    )
    assert len(vectors["embeddings"]) == 1


def test_what_open_webui_does_when_it_starts_and_chats(url: str) -> None:
    assert requests.get(f"{url}/api/version", timeout=9).ok
    listed = requests.get(f"{url}/api/tags", timeout=9).json()["models"]
    assert {"name", "model", "size", "digest", "details", "modified_at"} <= set(listed[0])
    assert requests.get(f"{url}/api/ps", timeout=9).json()["models"] is not None
    assert "completion" in post(url, "/api/show", {"name": "demo:latest"})["capabilities"]
    chat = {
        "model": "demo:latest",
        "messages": [{"role": "system", "content": "Be kind."}, TURN],
        "options": {**SHORT, "num_ctx": 1024},
        "stream": True,
        "chat_id": "x",
        "session_id": "y",
        "metadata": {"user_id": "1", "files": None},
        "features": {"web_search": False},
        "params": {},
    }
    headers = {"X-OpenWebUI-User-Name": "x", "Content-Type": "application/json"}
    with requests.post(
        f"{url}/api/chat", json=chat, headers=headers, stream=True, timeout=WAIT_S
    ) as answer:
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        assert json.loads(list(answer.iter_lines())[-1])["done"] is True
    title = {"model": "demo:latest", "messages": [{"role": "user", "content": "A title"}],
             "stream": False, "max_completion_tokens": 50, "options": SHORT}  # fmt: skip
    assert post(url, "/api/chat", title)["message"]["role"] == "assistant"
    assert post(url, "/api/generate", {"model": "demo:latest", "keep_alive": 0})["done"] is True


def test_what_an_editor_sends_for_completion_and_chat(url: str) -> None:
    """Continue: autocomplete as a raw prompt with stops, chat with a keep-alive in seconds."""
    complete = {
        "model": "demo",
        "prompt": "<fim_prefix>def f(<fim_suffix>):<fim_middle>",
        "raw": True,
        "options": {**SHORT, "stop": ["<fim_prefix>", "\n\n"], "num_ctx": 1024},
        "keep_alive": 1800,
        "stream": True,
    }
    answer = requests.post(f"{url}/api/generate", json=complete, timeout=WAIT_S)
    *_, last = map(json.loads, answer.text.splitlines())
    assert "context" not in last
    chat = {"model": "demo", "messages": [TURN], "keep_alive": 1800, "stream": False,
            "options": {**SHORT, "stop": []}}  # fmt: skip
    assert post(url, "/api/chat", chat)["done"] is True


def test_what_aider_sends_through_its_library(url: str) -> None:
    """LiteLLM: show by name, then generate with a prompt of its own or chat with strings."""
    shown = post(url, "/api/show", {"name": "demo"})
    assert shown["model_info"]["general.architecture"]
    assert isinstance(shown["template"], str)
    body = {"model": "demo", "prompt": f"### User:\n{SKY}\n\n### Assistant:\n", "stream": False,
            "options": {**SHORT, "num_ctx": 1024}, "images": []}  # fmt: skip
    assert post(url, "/api/generate", body)["done"] is True
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        stream: Any = client.chat.completions.create(
            model="demo", messages=[TURN], stream=True, max_tokens=8, extra_body={"num_ctx": 1024},
            stream_options={"include_usage": True},
        )  # fmt: skip
        usage = [chunk.usage for chunk in stream][-1]
    assert usage is not None
    assert usage.completion_tokens <= 8
