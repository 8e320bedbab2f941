"""Model names, as Ollama spells them: ``[host/][namespace/]model[:tag]``. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bundler.format.errors import ModelNameError

DEFAULT_HOST: Final = "registry.ollama.ai"
DEFAULT_NAMESPACE: Final = "library"
DEFAULT_TAG: Final = "latest"

_MAX_HOST: Final = 255
"""Why: a host is a directory of the store, and Linux takes no longer name."""
_MAX_PART: Final = 80
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_RULES: Final = (
    ("host", _HOST, _MAX_HOST),
    ("namespace", _NAMESPACE, _MAX_PART),
    ("model", _PART, _MAX_PART),
    ("tag", _PART, _MAX_PART),
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ModelName:
    """A full model name; ``ModelName.parse(n.full()) == n`` and the same for ``short()``.

    Every part is one path component that is neither empty nor starts with a dot, so the four
    parts may be joined to a path.
    """

    host: str = DEFAULT_HOST
    namespace: str = DEFAULT_NAMESPACE
    model: str
    tag: str = DEFAULT_TAG

    def __post_init__(self) -> None:
        """Refuse parts that break the rules of Ollama's names."""
        for field, pattern, longest in _RULES:
            value: str = getattr(self, field)
            if not pattern.fullmatch(value) or len(value) > longest:
                raise ModelNameError(
                    f"model name: {field}: expected {_wording(field, longest)}, "
                    f"found {value[:100]!r}",
                    hint="a name looks like model, model:tag, or host/namespace/model:tag",
                )

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Read a name as a user types it; a scheme such as ``https://`` is dropped.

        Raises:
            ModelNameError: a part is empty, too long, or has characters it may not have.
        """
        rest = text.strip()
        if "://" in rest:
            rest = rest.partition("://")[2]
        if "@" in rest:
            raise ModelNameError(f"model name: expected no digest, found {text[:100]!r}")
        tag = DEFAULT_TAG
        head, colon, last = rest.rpartition(":")
        if colon and "/" not in last:
            rest, tag = head, last
        parts = rest.split("/")
        match parts:
            case [model]:
                return cls(model=model, tag=tag)
            case [namespace, model]:
                return cls(namespace=namespace, model=model, tag=tag)
            case [host, namespace, model]:
                return cls(host=host, namespace=namespace, model=model, tag=tag)
            case _:
                raise ModelNameError(
                    f"model name: expected [host/][namespace/]model[:tag], found {text[:100]!r}"
                )

    def short(self) -> str:
        """How the name is shown: defaults dropped, the tag always there."""
        shown = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{shown}"
        if self.namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{shown}"
        return shown

    def full(self) -> str:
        """All four parts."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    def parts(self) -> tuple[str, str, str, str]:
        """Host, namespace, model and tag: the path of the name below ``manifests``."""
        return self.host, self.namespace, self.model, self.tag

    def folded(self) -> tuple[str, ...]:
        """The parts in folded case: names that differ only in case are the same model."""
        return tuple(part.casefold() for part in self.parts())

    def __str__(self) -> str:
        return self.short()


def _wording(field: str, longest: int) -> str:
    also = {"host": "_ . : -", "namespace": "_ -"}.get(field, "_ . -")
    return f"1 to {longest} of letters, digits and {also}, first a letter, digit or _"
