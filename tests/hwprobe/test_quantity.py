from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hwprobe.errors import QuantityError
from hwprobe.quantity import Bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 XiB", "1..5 GiB", "1e9", "1,5 GiB", "ten"])
def test_text_that_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(QuantityError, match="expected a size"):
        Bytes.parse(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1073741824", 1 << 30),
        ("1 GiB", 1 << 30),
        ("1.5g", 3 << 29),
        ("2 GB", 2 * 10**9),
        (" 7 kB ", 7000),
        ("0.1 KiB", 102),
    ],
)
def test_quantities_are_read(text: str, size: int) -> None:
    assert Bytes.parse(text) == size


def test_arithmetic_stays_a_quantity() -> None:
    assert str(Bytes(1 << 30) + (1 << 29)) == "1.50 GiB"
    assert str(Bytes(1 << 20) - (2 << 20)) == "-1.00 MiB"
    assert str(3 * Bytes(1024)) == "3.00 KiB"
    assert f"{sum([Bytes(512), Bytes(512)], Bytes(0)):>10}" == "  1.00 KiB"


@settings(deadline=None)
@given(size=st.integers(0, 2**60))
@example(size=1152)
def test_printed_quantity_reads_back_within_half_a_percent_and_a_byte(size: int) -> None:
    assert abs(Bytes.parse(str(Bytes(size))) - size) <= 0.005 * size + 1
