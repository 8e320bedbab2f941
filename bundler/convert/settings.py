"""``config.json`` of a checkpoint, read with the type and meaning of each value checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from bundler.errors import PackError


class Settings:
    """Typed access to a configuration; a refusal names the value."""

    def __init__(self, values: Mapping[str, Any], at: str = "config.json") -> None:
        self.values = values
        self._at = at

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of these values that is there; a whole number above zero."""
        value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            self.refuse(names[0], "a whole number above zero", value)
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """The first of these values that is there; a number."""
        value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(names[0], "a number", value)
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false; what is missing or null is the default."""
        value = self.values.get(name)
        return value if isinstance(value, bool) else default

    def numbers(self, name: str, length: int) -> list[float]:
        """A list of so many numbers."""
        value = self.values.get(name)
        if (
            not isinstance(value, list)
            or len(value) != length
            or not all(isinstance(one, int | float) for one in value)
        ):
            self.refuse(name, f"a list of {length} numbers", value)
        return [float(one) for one in value]

    def inner(self, *names: str) -> Settings:
        """The first of these values that is an object; empty when none is."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, dict):
                return Settings(value, f"{self._at}: {name}")
        return Settings({}, self._at)

    def text(self, *names: str, default: str = "") -> str:
        """The first of these values that is a text."""
        return next((v for name in names if isinstance(v := self.values.get(name), str)), default)

    def refuse(self, name: str, expected: str, found: object) -> NoReturn:
        """Refuse a value."""
        raise PackError(f"{self._at}: {name}: expected {expected}, found {found!r:.80}")

    def _first(self, names: tuple[str, ...], default: Any) -> Any:
        return next((v for name in names if (v := self.values.get(name)) is not None), default)
