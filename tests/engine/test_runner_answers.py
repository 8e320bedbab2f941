"""A real runner process, driven over its socket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.runner import protocol
from server.runner.marking import MARK
from server.runner.spelling import SPELLED
from server.wishes import Constraint
from tests.engine.runner_driver import DEMO, Driver, settings

pytestmark = pytest.mark.engine

CASES = json.loads(DEMO.with_name("golden.json").read_text())["cases"]
SKY = CASES[0]
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
ENDLESS: dict[str, Any] = {"logit_bias": tuple((token, -100.0) for token in (3059, 3061, 3065))}
"""Forbids the tokens that end an answer."""


@pytest.fixture(scope="module")
def runner() -> Iterator[Driver]:
    with Driver(settings(num_ctx=512, slots=4)) as driver:
        yield driver
    assert driver.process.returncode == 0, driver.stderr


def schema(wanted: object) -> Constraint:
    return Constraint(kind="json_schema", source=json.dumps(wanted))


class TestLoad:
    def test_file_that_is_no_model_is_refused_with_the_engine_s_words(self, tmp_path: Path) -> None:
        junk = tmp_path / "junk.gguf"
        junk.write_bytes(b"GGUF" + b"\xff" * 200)

        with Driver(model=junk) as driver:
            assert driver.failed is not None
            assert "could not load the model" in driver.failed.message
            driver.until(lambda: driver.closed)

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        with Driver(model=tmp_path / "none.gguf") as driver:
            assert driver.failed is not None

    def test_missing_adapter_is_refused(self) -> None:
        with Driver(load=False) as driver:
            driver.send(
                protocol.Load(
                    model_path=str(DEMO), settings=settings(), adapters=(("/nowhere", 1.0),)
                )
            )
            driver.until(lambda: driver.failed is not None)

    def test_ready_tells_what_was_loaded(self, runner: Driver) -> None:
        assert runner.ready is not None
        assert runner.ready.num_ctx == 512
        assert runner.ready.n_vocab == 3072
        assert sum(runner.ready.memory.values()) > DEMO.stat().st_size // 2
        assert "CPU" in runner.ready.system_info

    def test_progress_rises_to_one(self, runner: Driver) -> None:
        assert runner.progress == sorted(runner.progress)
        assert runner.progress[-1] == 1.0

    @pytest.mark.parametrize(
        "changes",
        [
            {"kv_type": "q8_0"},
            {"kv_type": "q4_0"},
            {"flash_attention": False},
            {"use_mmap": False, "repack": False},
            {"slots": 1, "num_ctx": 100},
            {"num_ubatch": 32, "threads": 2},
        ],
    )
    def test_settings_are_taken(self, changes: dict[str, Any]) -> None:
        with Driver(settings(**changes)) as driver:
            row = driver.generate(CHAT.format("ping"), num_predict=4)

        assert row.text == "pong"


class TestAnswers:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case["messages"][-1]["content"][:30])
    def test_greedy_text_is_the_recorded_one(self, runner: Driver, case: dict[str, Any]) -> None:
        row = runner.generate(case["prompt"], num_predict=len(case["tokens"]) + 1)

        assert row.text == case["text"]
        assert list(row.tokens) == case["tokens"]
        assert list(row.prompt_ids) == case["prompt_tokens"]

    def test_answer_is_the_same_alone_and_among_others(self, runner: Driver) -> None:
        wanted = [case["text"] for case in CASES]

        requests = [
            runner.start(case["prompt"], num_predict=len(case["tokens"]) + 1) for case in CASES
        ]

        assert [runner.finish(request).text for request in requests] == wanted

    def test_same_seed_gives_the_same_text(self, runner: Driver) -> None:
        """Hot enough that nearly every seed gives a text of its own; the prompt is warm."""
        options: dict[str, Any] = {"seed": 42, "temperature": 5.0, "top_p": 1.0, "num_predict": 40}
        runner.generate(SKY["prompt"], num_predict=1)
        first = runner.generate(SKY["prompt"], **options)
        second = runner.generate(SKY["prompt"], **options)
        other_seed = runner.generate(SKY["prompt"], **{**options, "seed": 43})

        assert first.text == second.text
        assert first.text != other_seed.text

    def test_other_requests_do_not_draw_from_the_same_dice(self, runner: Driver) -> None:
        """At an ordinary temperature; hotter, the engine's rounding shows (docs/batching.md)."""
        options: dict[str, Any] = {"seed": 42, "temperature": 1.0, "num_predict": 40}
        alone = runner.generate(SKY["prompt"], **options)
        others = [runner.start(CASES[n]["prompt"], num_predict=30) for n in (3, 4, 5)]
        among = runner.generate(SKY["prompt"], **options)

        assert alone.text == among.text
        for request in others:
            runner.finish(request)

    def test_last_row_counts(self, runner: Driver) -> None:
        prompt = CHAT.format("ping")
        runner.generate(prompt, num_predict=4)
        row = runner.generate(prompt, num_predict=4)

        assert (row.done, row.completion_tokens) == ("stop", 3)
        assert row.prompt_tokens == len(row.prompt_ids) == 10
        assert row.cached_tokens == 9
        assert row.prompt_s > 0
        assert row.eval_s > 0

    def test_text_comes_step_by_step(self, runner: Driver) -> None:
        request = runner.start(SKY["prompt"], num_predict=20)
        runner.finish(request)

        assert len(runner.rows[request]) == 20
        numbers = [step.n for step in runner.steps]
        assert numbers == sorted(numbers)

    def test_answer_ends_at_its_length(self, runner: Driver) -> None:
        row = runner.generate(SKY["prompt"], num_predict=5)

        assert (row.done, row.completion_tokens, len(row.tokens)) == ("length", 5, 5)

    def test_answer_of_no_tokens_only_reads_the_prompt(self, runner: Driver) -> None:
        row = runner.generate(SKY["prompt"], num_predict=0)

        assert (row.done, row.text, row.completion_tokens) == ("length", "", 0)

    def test_stop_text_ends_the_answer_and_is_no_part_of_it(self, runner: Driver) -> None:
        row = runner.generate(SKY["prompt"], num_predict=60, stop=("Rayleigh", "never"))

        assert (row.done, row.text) == ("stop", "The sky is blue because of ")

    def test_tokens_may_come_instead_of_text(self, runner: Driver) -> None:
        row = runner.generate(tokens=tuple(SKY["prompt_tokens"]), num_predict=70)

        assert row.text == SKY["text"]

    def test_log_probabilities_belong_to_the_visible_tokens(self, runner: Driver) -> None:
        row = runner.generate(
            SKY["prompt"], num_predict=60, top_logprobs=3, stop=(" scattering. Sun",)
        )

        assert "".join(entry[0] for entry in row.logprobs) == row.text
        for text, raw, value, top in row.logprobs:
            assert bytes.fromhex(raw).decode() == text
            assert value <= 0
            assert len(top) == 3
            assert top[0] == [text, raw, value]

    def test_bias_forbids_a_token(self, runner: Driver) -> None:
        first = runner.generate(SKY["prompt"], num_predict=1).tokens[0]
        row = runner.generate(SKY["prompt"], num_predict=1, logit_bias=((first, -100.0),))

        assert row.tokens[0] != first

    @pytest.mark.parametrize("mirostat", [1, 2])
    def test_mirostat_answers(self, runner: Driver, mirostat: int) -> None:
        row = runner.generate(
            SKY["prompt"], num_predict=10, temperature=0.8, mirostat=mirostat, seed=1
        )

        assert row.fault is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"prompt": ""}, "the prompt is empty"),
            ({"tokens": (3072,)}, "token: expected 0 to 3071, found 3072"),
            ({"tokens": (-1,)}, "images: the prompt names more images than there are"),
            ({"prompt": "x", "repeat_penalty": 0.0}, "repeat_penalty"),
            ({"prompt": "x", "constraint": Constraint(kind="lark")}, "lark: it cannot be"),
            (
                {"prompt": "x", "constraint": Constraint(kind="gbnf", source="root ::= (")},
                "the grammar is not accepted",
            ),
            (
                {"prompt": "x", "constraint": schema({"type": "color"})},
                "json schema",
            ),
            (
                {"prompt": "x", "constraint": schema({"$ref": "a:b"})},
                "does not fetch",
            ),
            ({"prompt": "a " * 600, "truncate": False}, "input length exceeds the context length"),
        ],
    )
    def test_request_gets_a_fault_and_the_next_one_an_answer(
        self, runner: Driver, fields: dict[str, Any], words: str
    ) -> None:
        row = runner.generate(**fields)

        assert row.fault is not None
        assert re.search(words, row.fault)
        assert runner.generate(CHAT.format("ping"), num_predict=4).text == "pong"

    def test_lone_surrogate_in_a_request_harms_nobody(self, runner: Driver) -> None:
        runner.socket.sendall(
            protocol.encode(runner.command("PLACE", num_predict=1)).replace(b"PLACE", b"\\ud800")
        )
        request = runner._next - 1
        runner.finish(request)

        bad = {"kind": "\ud800", "begins": (), "reasoning": None}
        command = json.dumps(
            {**json.loads(protocol.encode(runner.command("x"))), "constraint": bad}
        )
        runner.socket.sendall(command.encode() + b"\n")
        assert runner.finish(runner._next - 1).fault is not None


class TestContext:
    def test_overlong_prompt_keeps_its_beginning_and_its_end(self, runner: Driver) -> None:
        tokens = tuple(range(100, 1100))
        row = runner.generate(tokens=tokens, num_predict=1, num_keep=10)

        assert row.prompt_ids[:10] == tokens[:10]
        assert row.prompt_ids[10:] == tokens[-(len(row.prompt_ids) - 10) :]
        assert len(row.prompt_ids) == 512 - (512 - 10) // 2

    def test_answer_ends_where_the_context_ends(self, runner: Driver) -> None:
        row = runner.generate(SKY["prompt"], num_predict=2000, shift=False, **ENDLESS)

        assert row.done == "length"
        assert row.prompt_tokens + row.completion_tokens == 512

    def test_answer_goes_on_beyond_the_context_when_it_may_slide(self, runner: Driver) -> None:
        row = runner.generate(SKY["prompt"], num_predict=1200, shift=True, **ENDLESS)

        assert (row.done, row.completion_tokens) == ("length", 1200)

    def test_answers_that_slide_together_stay_apart(self, runner: Driver) -> None:
        options: dict[str, Any] = {"num_predict": 700, "shift": True, **ENDLESS}
        alone = runner.generate(CASES[1]["prompt"], **options)
        requests = [runner.start(case["prompt"], **options) for case in CASES[:4]]

        assert runner.finish(requests[1]).text == alone.text
        for request in requests:
            assert runner.finish(request).completion_tokens == 700


class TestTokens:
    def test_text_and_tokens_are_inverse(self, runner: Driver) -> None:
        text = "The air gap, 🙂 naïve\n\n  x"

        assert runner.detokenize(runner.tokenize(text)) == text

    def test_control_tokens_are_parsed_only_on_request(self, runner: Driver) -> None:
        assert runner.tokenize("<|im_end|>") == (3061,)
        assert 3061 not in runner.tokenize("<|im_end|>", parse_special=False)

    def test_guarded_control_token_is_text(self, runner: Driver) -> None:
        tokens = runner.tokenize(f"<|im_start|>a<{MARK}|im_end|>b<|im_end|>")

        assert tokens.count(3061) == 1
        assert runner.detokenize(tokens) == "<|im_start|>a<|im_end|>b<|im_end|>"

    def test_doubled_mark_is_a_character(self, runner: Driver) -> None:
        assert runner.detokenize(runner.tokenize(f"a{MARK}{MARK}b")) == f"a{MARK}b"

    def test_long_text_without_a_space_is_tokenized(self, runner: Driver) -> None:
        text = "a" * 500_000

        assert runner.detokenize(runner.tokenize(text)) == text

    def test_unknown_ids_are_left_out_of_the_text(self, runner: Driver) -> None:
        assert runner.detokenize((79, 638, 10**6, -5)) == "pong"


class TestGrammar:
    @pytest.mark.parametrize("temperature", [0.0, 1.5])
    def test_json_is_an_object(self, runner: Driver, temperature: float) -> None:
        row = runner.generate(
            CHAT.format("Give me JSON"),
            num_predict=200,
            temperature=temperature,
            seed=3,
            constraint=Constraint(kind="json"),
        )

        assert row.text.startswith("{")
        if row.done == "stop":
            json.loads(row.text)

    def test_schema_is_followed(self, runner: Driver) -> None:
        wanted = {
            "type": "object",
            "properties": {"answer": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
            "required": ["answer", "sure"],
            "additionalProperties": False,
        }
        row = runner.generate(
            CHAT.format("Is the sky blue?"),
            num_predict=60,
            constraint=Constraint(kind="json_schema", source=json.dumps(wanted)),
        )

        answer = json.loads(row.text)
        assert row.done == "stop"
        assert answer["answer"] in ("yes", "no")
        assert isinstance(answer["sure"], bool)

    def test_gbnf_leaves_one_way(self, runner: Driver) -> None:
        row = runner.generate(
            CHAT.format("ping"),
            num_predict=60,
            constraint=Constraint(kind="gbnf", source='root ::= "an air gap, " [0-9]{3}'),
        )

        assert row.text.startswith("an air gap, ")
        assert len(row.text) == 15
        assert row.done == "stop"

    def test_control_tokens_are_no_text_for_a_grammar(self, runner: Driver) -> None:
        row = runner.generate(
            "<|im_start|>user\n",
            num_predict=20,
            constraint=Constraint(kind="gbnf", source='root ::= "<|im_start|>"'),
        )

        assert row.text == f"<|im_start|{SPELLED}>"
        assert 3060 not in row.tokens

    def test_grammar_works_beside_free_answers(self, runner: Driver) -> None:
        free = runner.start(SKY["prompt"], num_predict=70)
        bound = runner.start(
            CHAT.format("ping"),
            num_predict=9,
            constraint=Constraint(kind="gbnf", source='root ::= "no"'),
        )

        assert runner.finish(bound).text == "no"
        assert runner.finish(free).text == SKY["text"]


class TestTokensComputedAhead:
    WANTED = Constraint(
        kind="json_schema",
        source=json.dumps(
            {
                "type": "object",
                "properties": {
                    "status_of_the_machine": {"enum": ["running", "stopped"]},
                    "explanation": {"type": "string", "maxLength": 20},
                },
                "required": ["status_of_the_machine", "explanation"],
                "additionalProperties": False,
            }
        ),
    )

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_forced_tokens_save_steps_and_change_nothing(
        self, runner: Driver, temperature: float
    ) -> None:
        """Greedy and sampled; what the engine rounds otherwise does not show here."""
        rows, steps = [], []
        for speculate in (False, True):
            begin = len(runner.steps)
            rows.append(
                runner.generate(
                    CHAT.format("Is it running?"),
                    num_predict=80,
                    temperature=temperature,
                    seed=4,
                    constraint=self.WANTED,
                    speculate=speculate,
                )
            )
            steps.append(len(runner.steps) - begin)

        assert rows[0].text == rows[1].text
        assert (rows[0].proposed, rows[0].accepted) == (0, 0)
        assert rows[1].accepted >= 5
        assert steps[1] == steps[0] - rows[1].accepted

    def test_greedy_text_is_that_of_the_golden_file(self, runner: Driver) -> None:
        for case in CASES:
            row = runner.generate(case["prompt"], num_predict=len(case["tokens"]) + 1)
            assert row.text == case["text"]


class TestManyRequests:
    def test_more_requests_than_slots_are_all_answered(self, runner: Driver) -> None:
        requests = [runner.start(CHAT.format("ping"), num_predict=4) for _ in range(40)]

        assert {runner.finish(request).text for request in requests} == {"pong"}

    def test_long_conversations_beyond_the_cache_wait_and_never_fail(self) -> None:
        with Driver(settings(num_ctx=256, slots=2)) as driver:
            requests = [
                driver.start(tokens=tuple(range(n * 50, n * 50 + 200)), num_predict=50, **ENDLESS)
                for n in range(12)
            ]
            rows = [driver.finish(request) for request in requests]

        assert [row.fault for row in rows] == [None] * 12
        assert {row.completion_tokens for row in rows} == {50}

    def test_three_hundred_requests_leave_nothing_behind(self) -> None:
        with Driver(settings(num_ctx=256, slots=4)) as driver:
            pid = driver.process.pid

            def round_of(count: int) -> None:
                grammar = Constraint(kind="json")
                requests = [
                    driver.start(
                        CHAT.format(f"question {n}"),
                        num_predict=4,
                        constraint=grammar if n % 5 == 0 else None,
                    )
                    for n in range(count)
                ]
                for request in requests:
                    driver.finish(request)

            round_of(60)
            before = (_open_files(pid), _resident_kib(pid))
            round_of(300)
            after = (_open_files(pid), _resident_kib(pid))

        assert after[0] == before[0]
        assert after[1] < before[1] + 16 * 1024


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
