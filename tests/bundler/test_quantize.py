from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bundler.errors import QuantizeError
from bundler.quantize import BITS_PER_WEIGHT, estimate_bytes, quantize
from hwprobe.gguf import model_profile, read_header
from tests.fakes.forge import tiny_model

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
pytestmark = pytest.mark.engine


def test_progress_adds_up_to_the_size_of_the_result(tmp_path: Path) -> None:
    seen: list[int] = []
    target = tmp_path / "q8.gguf"
    quantize(DEMO, target, "Q8_0", threads=2, advance=seen.append)
    assert sum(seen) == target.stat().st_size
    assert model_profile(read_header(target)).quantization == "Q8_0"


def test_what_the_engine_refuses_leaves_no_file_and_says_why(tmp_path: Path) -> None:
    source = tmp_path / "broken.gguf"
    source.write_bytes(tiny_model()[:20_000])
    target = tmp_path / "target.gguf"
    with pytest.raises(QuantizeError, match="the engine") as caught:
        quantize(source, target, "Q8_0", threads=1, advance=lambda _: None)
    assert "\n" not in str(caught.value)
    assert not target.exists()


def test_a_crash_of_the_engine_is_an_error_of_one_variant(tmp_path: Path) -> None:
    """The child is killed while it writes, as an abort or the kernel would."""
    target = tmp_path / "target.gguf"

    def kill_children(_: int) -> None:
        for task in Path("/proc/self/task").iterdir():
            for pid in (task / "children").read_text().split():
                if b"bundler.quantize_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(QuantizeError, match="ended by SIGKILL"):
        quantize(DEMO, target, "IQ4_XS", threads=1, advance=kill_children)
    assert not target.exists()


def test_a_missing_source_is_an_error_of_the_engine(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="the engine refused"):
        quantize(
            tmp_path / "none.gguf",
            tmp_path / "target.gguf",
            "Q8_0",
            threads=1,
            advance=lambda _: None,
        )


@pytest.mark.parametrize("quantization", [name for name in BITS_PER_WEIGHT if name != "F16"])
def test_every_quantization_offered_can_be_made_and_is_estimated_high_enough(
    tmp_path: Path, quantization: str
) -> None:
    target = tmp_path / "target.gguf"
    quantize(DEMO, target, quantization, threads=2, advance=lambda _: None)
    profile = model_profile(read_header(DEMO))
    if quantization != "F32":
        assert target.stat().st_size <= estimate_bytes(profile, quantization)
