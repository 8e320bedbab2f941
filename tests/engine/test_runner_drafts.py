"""A draft model beside a real one: what it costs and saves, and that it never changes a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundler.quantize import quantize
from server.runner.protocol import Cancel, Row
from server.wishes import Constraint
from tests.engine.runner_driver import DEMO, Driver, settings
from tests.fakes.random_models import write_random

pytestmark = pytest.mark.engine

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = (
    "Why is the sky blue?",
    "What is a draft model?",
    "How do I read a log?",
    "Who are you?",
)

ENDLESS = tuple((token, -100.0) for token in (3059, 3061, 3065))
"""Forbids the tokens that end an answer."""


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with four bits a weight: like it, but not the same."""
    path = tmp_path_factory.mktemp("draft") / "rough.gguf"
    quantize(DEMO, path, "Q4_0", threads=1, advance=lambda _count: None)
    return path


@pytest.fixture(scope="module")
def twin() -> Iterator[Driver]:
    """The demo model as its own draft: nearly always right."""
    with Driver(draft=DEMO) as driver:
        yield driver


@pytest.fixture(scope="module")
def helped(rough: Path) -> Iterator[Driver]:
    with Driver(draft=rough) as driver:
        yield driver


class TestRefusals:
    def refused(self, model: Path, draft: Path) -> str:
        with Driver(model=model, draft=draft) as driver:
            assert driver.failed is not None
            return driver.failed.message

    def test_tokens_with_other_texts(self, tmp_path: Path) -> None:
        other = tmp_path / "other.gguf"
        data = DEMO.read_bytes()
        assert data.count(b"<|im_start|>") >= 1
        other.write_bytes(data.replace(b"<|im_start|>", b"<|im_stort|>"))

        message = self.refused(DEMO, other)
        assert "token 3060 is '<|im_stort|>', not '<|im_start|>'" in message

    def test_a_model_that_cannot_take_tokens_back(self, tmp_path: Path) -> None:
        other = write_random("recurrent", tmp_path / "other.gguf")

        assert "the draft model keeps a running state" in self.refused(DEMO, other)
        assert "the model keeps a running state" in self.refused(other, DEMO)

    def test_no_model_and_no_file(self, tmp_path: Path) -> None:
        text = tmp_path / "text.gguf"
        text.write_bytes(b"no model")

        assert "not a usable GGUF" in self.refused(DEMO, text)
        assert "draft: cannot be read" in self.refused(DEMO, tmp_path / "none.gguf")


def both(driver: Driver, prompt: str, **fields: object) -> tuple[Row, Row]:
    """A request without and with what is drafted."""
    plain = driver.generate(prompt, draft_num_predict=0, **fields)
    return plain, driver.generate(prompt, draft_num_predict=4, **fields)


class TestAnswers:
    def test_a_twin_is_right_and_saves_steps(self, twin: Driver) -> None:
        begin = len(twin.steps)
        plain = twin.generate(CHAT.format(QUESTIONS[0]), num_predict=60, speculate=False)
        middle = len(twin.steps)
        drafted = twin.generate(CHAT.format(QUESTIONS[0]), num_predict=60, draft_num_predict=4)
        steps = (middle - begin, len(twin.steps) - middle)

        assert drafted.text == plain.text
        assert (plain.drafted, plain.confirmed) == (0, 0)
        assert drafted.confirmed >= 0.9 * drafted.drafted > 0
        assert steps[1] < steps[0] / 2

    @pytest.mark.parametrize("question", QUESTIONS)
    def test_greedy_text_is_the_same(self, helped: Driver, question: str) -> None:
        plain, drafted = both(helped, CHAT.format(question), num_predict=60)

        assert drafted.text == plain.text
        assert drafted.confirmed > 0

    def test_sampled_texts_are_the_same(self, helped: Driver) -> None:
        """The dice are the same; the engine rounds otherwise, which seldom shows."""
        differing = wrong = 0
        for seed in range(10):
            plain, drafted = both(
                helped, CHAT.format(QUESTIONS[1]), num_predict=40, temperature=0.8, seed=seed
            )
            differing += plain.text != drafted.text
            wrong += drafted.drafted - drafted.confirmed
        assert differing <= 1
        assert wrong > 0

    def test_penalties_stops_and_probabilities(self, helped: Driver) -> None:
        plain, drafted = both(
            helped,
            CHAT.format(QUESTIONS[0]),
            num_predict=60,
            repeat_penalty=1.3,
            stop=("air",),
            top_logprobs=2,
        )

        assert (drafted.text, drafted.done) == (plain.text, plain.done)
        assert [entry[0] for entry in drafted.logprobs] == [entry[0] for entry in plain.logprobs]
        for one, two in zip(plain.logprobs, drafted.logprobs, strict=True):
            assert one[2] == pytest.approx(two[2], abs=0.02)

    def test_bound_answers(self, helped: Driver) -> None:
        source = json.dumps(
            {
                "type": "object",
                "properties": {"colour": {"type": "string", "maxLength": 30}},
                "required": ["colour"],
                "additionalProperties": False,
            }
        )
        plain, drafted = both(
            helped,
            CHAT.format("What colour is the sky?"),
            num_predict=60,
            constraint=Constraint(kind="json_schema", source=source),
        )

        assert drafted.text == plain.text
        assert set(json.loads(drafted.text)) == {"colour"}

    def test_a_full_context_slides(self, rough: Path) -> None:
        with Driver(settings(num_ctx=256, slots=1), draft=rough) as driver:
            row = driver.generate(
                "a b c d e f", num_predict=600, draft_num_predict=4, logit_bias=ENDLESS
            )

            assert row.completion_tokens == 600
            assert row.confirmed > 0

    def test_the_length_asked_for_is_kept(self, twin: Driver) -> None:
        for most in range(1, 8):
            row = twin.generate(CHAT.format(QUESTIONS[0]), num_predict=most, draft_num_predict=8)
            assert row.completion_tokens == most


class TestTogether:
    def test_several_at_once_say_what_each_says_alone(self, helped: Driver) -> None:
        prompts = [CHAT.format(question) for question in QUESTIONS]
        alone = [helped.generate(prompt, num_predict=50, speculate=False) for prompt in prompts]
        commands = [
            helped.command(prompt, num_predict=50, draft_num_predict=2) for prompt in prompts
        ]
        helped.send(*commands)
        rows = [helped.finish(command.id) for command in commands]

        assert [row.text for row in rows] == [row.text for row in alone]
        assert all(row.drafted for row in rows)

    def test_one_that_is_cancelled_leaves_the_others_alone(self, helped: Driver) -> None:
        prompt = CHAT.format(QUESTIONS[0])
        alone = helped.generate(prompt, num_predict=50, speculate=False)
        first = helped.start(prompt, num_predict=400, draft_num_predict=4)
        second = helped.start(prompt, num_predict=50, draft_num_predict=4)
        helped.until(lambda: len(helped.rows[first]) > 3)
        helped.send(Cancel(id=first))

        assert helped.finish(first).done == "cancelled"
        assert helped.finish(second).text == alone.text

    def test_a_conversation_goes_on_where_it_was(self, helped: Driver) -> None:
        prompt = CHAT.format(QUESTIONS[0])
        row = helped.generate(prompt, num_predict=40, draft_num_predict=4)
        longer = prompt + row.text + "<|im_end|>\n" + CHAT.format("And at night?")
        plain = helped.generate(longer, num_predict=40, speculate=False)
        again = helped.generate(longer, num_predict=40, draft_num_predict=4)

        assert again.cached_tokens > row.prompt_tokens
        assert again.text == plain.text
        assert again.drafted > 0

    def test_more_requests_than_slots_and_room(self, rough: Path) -> None:
        """Idle prompts are evicted, spare sequences shared, and all say what they say alone."""
        prompts = [CHAT.format(f"{question} {n}") for n in range(5) for question in QUESTIONS]
        with Driver(settings(num_ctx=256, slots=3, spare_sequences=2), draft=rough) as driver:
            alone = [driver.generate(one, num_predict=30, speculate=False) for one in prompts]
            commands = [
                driver.command(prompt, num_predict=30, draft_num_predict=2) for prompt in prompts
            ]
            driver.send(*commands)
            rows = [driver.finish(command.id) for command in commands]

            assert [row.text for row in rows] == [row.text for row in alone]
            assert sum(row.confirmed for row in rows) > 0


def test_its_memory_is_told(twin: Driver) -> None:
    with Driver() as alone:
        assert alone.ready is not None
        assert twin.ready is not None
        assert sum(twin.ready.memory.values()) > 1.8 * sum(alone.ready.memory.values())
