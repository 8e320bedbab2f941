"""How a source is named on the command line. Pure.

``ollama:NAME[:TAG]`` is a model of an Ollama store on this computer,
``hf:ORG/REPO[:QUANT][@REVISION]`` a repository of Hugging Face, and
``oci:HOST/REPO[:TAG|@DIGEST]`` a repository of an OCI or Ollama registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.format.errors import DigestFormatError, ModelNameError
from bundler.format.name import ModelName

_PART: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_HUB: Final = re.compile(
    rf"({_PART}/{_PART})(?::([A-Za-z0-9][A-Za-z0-9_.-]{{0,95}}))?(?:@([A-Za-z0-9][\w./-]{{0,127}}))?"
)
_HOST: Final = r"[A-Za-z0-9][A-Za-z0-9.-]{0,253}(?::\d{1,5})?"
_REPOSITORY: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REGISTRY: Final = re.compile(
    rf"({_HOST})/((?:{_REPOSITORY}/)*{_REPOSITORY})(?::([A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?"
    r"(?:@(\S+))?"
)
"""Repository and tag as the OCI distribution specification spells them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaReference:
    """A model of an Ollama store."""

    name: ModelName

    @property
    def model_name(self) -> ModelName | None:
        """What the model is called on the target when nobody says otherwise."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class HubReference:
    """A repository of Hugging Face; an empty field was not given."""

    repository: str
    quantization: str = ""
    revision: str = ""

    @property
    def model_name(self) -> ModelName | None:
        """Ollama's name of it: ``hf.co/ORG/REPO:QUANT``; ``None`` when that is no model name."""
        namespace, _, model = self.repository.partition("/")
        return _model_name("hf.co", namespace, model, self.quantization or "latest")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryReference:
    """A repository of a registry, by tag or by digest of its manifest."""

    host: str
    repository: str
    tag: str = "latest"
    digest: Digest | None = None

    @property
    def model_name(self) -> ModelName | None:
        """The same name where it has three parts; ``None`` when that is no model name."""
        namespace, _, model = self.repository.rpartition("/")
        tag = self.digest.short() if self.digest else self.tag
        return _model_name(self.host, namespace, model, tag)

    @property
    def version(self) -> str:
        """What names the manifest in a request."""
        return str(self.digest) if self.digest else self.tag

    def __str__(self) -> str:
        version = f"@{self.digest}" if self.digest else f":{self.tag}"
        return f"{self.host}/{self.repository}{version}"


Reference = OllamaReference | HubReference | RegistryReference


def parse_reference(text: str) -> Reference:
    """Read what stands behind ``--from``.

    Raises:
        PackError: it names no known kind of source, or breaks that kind's rules.
        ModelNameError: ``ollama:`` without a model name.
    """
    kind, colon, rest = text.partition(":")
    match kind if colon else "":
        case "ollama":
            return OllamaReference(name=ModelName.parse(rest))
        case "hf":
            if found := _HUB.fullmatch(rest):
                repository, quantization, revision = found.groups(default="")
                return HubReference(
                    repository=repository, quantization=quantization, revision=revision
                )
            raise PackError(f"from: expected hf:ORG/REPO[:QUANT][@REVISION], found {text!r}")
        case "oci":
            return _registry(text, rest)
        case _:
            raise PackError(
                f"from: expected ollama:NAME, hf:ORG/REPO or oci:HOST/REPO, found {text!r}",
                hint="a GGUF file or a safetensors directory is given without --from",
            )


def _model_name(host: str, namespace: str, model: str, tag: str) -> ModelName | None:
    try:
        return ModelName(host=host, namespace=namespace, model=model, tag=tag)
    except ModelNameError:
        return None


def _registry(text: str, rest: str) -> RegistryReference:
    found = _REGISTRY.fullmatch(rest)
    if not found:
        raise PackError(f"from: expected oci:HOST/REPO[:TAG|@DIGEST], found {text!r}")
    host, repository, tag, digest = found.groups()
    try:
        parsed = Digest.parse(digest) if digest else None
    except DigestFormatError as error:
        raise PackError(f"from: {error}") from error
    return RegistryReference(host=host, repository=repository, tag=tag or "latest", digest=parsed)
