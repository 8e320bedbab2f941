"""The small files of a model, as Ollama's layers hold them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from bundler.errors import PackError
from bundler.format.manifest import Role
from bundler.format.modelfile import Modelfile

Layers = tuple[tuple[Role, bytes], ...]


def model_layers(
    modelfile: Modelfile, *, template: str | None = None, licences: Iterable[str] = ()
) -> Layers:
    """Layers of a Modelfile, and of what was given beside it.

    Args:
        modelfile: FROM, ADAPTER and DRAFT are not looked at: large files are given otherwise.
        template: replaces the Modelfile's.
        licences: texts that follow the Modelfile's.

    Raises:
        PackError: the Modelfile asks for something a bundle does not carry yet.
    """
    unsupported = {
        "RENDERER": modelfile.renderer,
        "PARSER": modelfile.parser,
    }
    for instruction, value in unsupported.items():
        if value:
            raise PackError(
                f"modelfile: {instruction} cannot be packed by this release",
                hint=f"leave {instruction} out, and add it on the target with satchel create",
            )
    texts: list[tuple[Role, str]] = []
    if chosen := (modelfile.template if template is None else template):
        texts.append(("template", chosen))
    if modelfile.system:
        texts.append(("system", modelfile.system))
    if modelfile.parameters:
        texts.append(("params", _json(modelfile.parameter_object())))
    if modelfile.messages:
        messages = [{"role": role, "content": text} for role, text in modelfile.messages]
        texts.append(("messages", _json(messages)))
    every = dict.fromkeys([*modelfile.licenses, *licences])
    texts.extend(("license", text) for text in every if text)
    return tuple((role, text.encode("utf-8")) for role, text in texts)


def over(base: Layers, given: Layers) -> Layers:
    """The layers of a source, with those that were given in their place; licences add up."""
    replaced = {role for role, _ in given if role != "license"}
    kept = [(role, data) for role, data in base if role not in replaced]
    return tuple(dict.fromkeys([*kept, *given]))


def _json(value: object) -> str:
    """The same values always as the same text; parameters may be fractions here."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
