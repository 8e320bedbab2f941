r"""What the server and a runner say to each other: one JSON object per line, both ways. Pure.

Rules:
 * the runner is started with one end of a socket pair; its first line must be `Load`;
 * it answers `Progress` while it loads, then `Ready`, or `Failed` and exits;
 * after `Ready` the server sends `Generate`, `Embed`, `Cancel`, `Tokenize`, `Detokenize`, `Look`
   in any order;
 * the runner sends one `Step` per decode step, with the new text of *all* sequences in it;
 * a request ends with exactly one row that has ``done`` or ``fault``; after it the id is free;
 * a `Cancel` is answered by a row with ``done`` and reason ``cancelled``; a `Cancel` for an id
   that has ended is ignored;
 * closing the socket from the server's side ends the runner.

Text is UTF-8 and complete characters only: the runner holds back the bytes of a split one.
A line ends with ``\n`` and is at most `MAX_LINE_BYTES` long.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hwprobe.settings import EngineSettings
from server.errors import RunnerCrashedError
from server.wishes import Constraint, Reasoning, SamplingOptions

MAX_LINE_BYTES = 64 << 20
"""64 MiB. Why: a prompt of a million tokens as ids is about 8 MB of JSON; eight times that."""

DoneReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepsakes:
    """Where computed prompts outlive a runner.

    Attributes:
        folder: with the files.
        binding: 64 hex digits for what a state must have been computed with.
        limit_bytes: most that all files may take.
    """

    folder: str
    binding: str
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load this model with these settings; the first line of every conversation."""

    op: Literal["load"] = "load"
    model_path: str
    settings: EngineSettings
    adapters: tuple[tuple[str, float], ...] = ()
    projector: str = ""
    draft: str = ""
    keepsakes: Keepsakes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Complete one prompt.

    Attributes:
        id: chosen by the server, unique among the requests in flight.
        prompt: text to tokenize with special tokens parsed; unused when ``tokens`` is given.
        tokens: prompt as token ids; -1 - N stands for image N.
        images: files in base64.
        add_bos: let the tokenizer add a BOS where the model asks for one; the tokenizer never
            adds a second one.
        truncate: cut an overlong prompt (keeping ``num_keep`` tokens at its start) instead of
            refusing it.
        shift: on a full context drop old tokens and go on, instead of ending with ``length``.
        top_logprobs: ``None`` without log-probabilities.
        constraint: what the answer may look like; ``None`` for anything.
        tenant: who shares the machine with others.
        scope: only requests of one scope share what they have computed.
    """

    op: Literal["generate"] = "generate"
    id: int
    prompt: str = ""
    tokens: tuple[int, ...] = ()
    images: tuple[str, ...] = ()
    add_bos: bool = True
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    truncate: bool = True
    shift: bool = True
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    tenant: str = ""
    scope: str = ""


VectorForm = Literal["float32", "float64", "base64"]
"""How a vector is written: a JSON array of single or double precision, or little-endian bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Turn texts into vectors, or rank them; answered by rows with ``vectors``.

    Attributes:
        id: chosen by the server, unique among the requests in flight.
        texts: what to embed, control tokens in it included; the model's frame is put around each.
        tokens: token ids to embed as they are, instead of ``texts``.
        query: what each text is compared with; only for models that rank.
        truncate: cut overlong texts instead of refusing them.
        dimensions: length of the vectors; 0 is the model's.
        normalize: scale them to length one.
        form: how they are written.
        tenant, scope: see `Generate`.
    """

    op: Literal["embed"] = "embed"
    id: int
    texts: tuple[str, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    query: str | None = None
    truncate: bool = True
    dimensions: int = 0
    normalize: bool = True
    form: VectorForm = "float32"
    tenant: str = ""
    scope: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End this request now, wherever it stands."""

    op: Literal["cancel"] = "cancel"
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize:
    """Turn text into token ids; answered by `Tokens`.

    Attributes:
        id: chosen by the server.
        text: the text.
        add_bos: put a BOS in front where the model asks for one.
        parse_special: texts of control tokens become control tokens.
        framed: put all tokens around it that the model frames texts with, instead of the BOS.
        pieces: tell the bytes of each token, too.
    """

    op: Literal["tokenize"] = "tokenize"
    id: int
    text: str
    add_bos: bool = True
    parse_special: bool = True
    framed: bool = False
    pieces: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Detokenize:
    """Turn token ids into text; answered by `Text`."""

    op: Literal["detokenize"] = "detokenize"
    id: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Tell how many tokens images take; answered by `Tokens` with one number for each.

    Attributes:
        id: chosen by the server.
        images: files in base64.
    """

    op: Literal["look"] = "look"
    id: int
    images: tuple[str, ...]


Command = Load | Generate | Embed | Cancel | Tokenize | Detokenize | Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How much of the model is loaded, 0 to 1."""

    ev: Literal["progress"] = "progress"
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The model is loaded and answers.

    Attributes:
        num_ctx: context of one slot as the engine rounded it, in tokens.
        n_vocab: size of the vocabulary.
        memory: bytes per buffer type as the engine reports them, ``{"CPU": 123, …}``.
        system_info: the engine's own line about its build.
        load_s: seconds the load took.
        batch_s: seconds a full batch takes, as measured right after the load.
    """

    ev: Literal["ready"] = "ready"
    num_ctx: int
    n_vocab: int
    memory: dict[str, int] = field(default_factory=dict)
    system_info: str = ""
    load_s: float = 0.0
    batch_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The model could not be loaded; the runner exits after this."""

    ev: Literal["failed"] = "failed"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one sequence gained in a step.

    Attributes:
        id: the request.
        text: new text, complete characters, stop texts already held back and cut off. Texts of
            control tokens that other tokens spell are marked, see `spelling`.
        tokens: ids sampled in this step (usually one; several with speculation).
        logprobs: one ``[text, bytes as hex, logprob, [[text, hex, logprob], …]]`` per token.
        done: why the request ended, on its last row.
        prompt_tokens: on the last row: tokens of the prompt.
        cached_tokens: on the last row: prompt tokens that were not computed.
        completion_tokens: on the last row: tokens sampled.
        prompt_s: on the last row: seconds from admission to the first sampled token.
        eval_s: on the last row: seconds from there to the end.
        prompt_ids: on the last row: the prompt as the engine saw it (for ``context``).
        proposed: on the last row: tokens computed before it was known that they come.
        accepted: on the last row: of these, those that came.
        drafted: on the last row: of those proposed, the draft model's.
        confirmed: on the last row: of these, those that came.
        relaxed: on the last row: keywords of the schema that were not enforced.
        vectors: further vectors of an `Embed`, in the order of its texts.
        fault: this request was refused or broke; nothing follows for it.
        refused: with ``fault``: what it asks for cannot be done, whoever tries.
    """

    id: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Any, ...] = ()
    done: DoneReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt_s: float = 0.0
    eval_s: float = 0.0
    prompt_ids: tuple[int, ...] = ()
    proposed: int = 0
    accepted: int = 0
    drafted: int = 0
    confirmed: int = 0
    relaxed: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    fault: str | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The new text of all sequences of one decode step; ``n`` counts the steps."""

    ev: Literal["step"] = "step"
    n: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Answer to `Tokenize` and `Look`.

    Attributes:
        pieces: the bytes of each token in hexadecimal.
        refused: why there is no answer.
    """

    ev: Literal["tokens"] = "tokens"
    id: int
    tokens: tuple[int, ...]
    pieces: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Answer to `Detokenize`."""

    ev: Literal["text"] = "text"
    id: int
    text: str


Event = Progress | Ready | Failed | Step | Tokens | Text

_COMMANDS: dict[str, type[Any]] = {
    "load": Load,
    "generate": Generate,
    "embed": Embed,
    "cancel": Cancel,
    "tokenize": Tokenize,
    "detokenize": Detokenize,
    "look": Look,
}
_EVENTS: dict[str, type[Any]] = {
    "progress": Progress,
    "ready": Ready,
    "failed": Failed,
    "step": Step,
    "tokens": Tokens,
    "text": Text,
}
_ROW_DEFAULTS = asdict(Row(id=0))


def encode(message: Command | Event) -> bytes:
    r"""One line with its ``\n``. `decode_command` and `decode_event` are its inverse."""
    fields = asdict(message)
    if isinstance(message, Step):
        fields["rows"] = [_sparse(row) for row in fields["rows"]]
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def decode_command(line: bytes) -> Command:
    """Read a line of the server.

    Raises:
        RunnerCrashedError: the line is not a command.
    """
    message = _decode(line, _COMMANDS, "op")
    assert isinstance(message, Command)
    return message


def decode_event(line: bytes) -> Event:
    """Read a line of a runner.

    Raises:
        RunnerCrashedError: the line is not an event: the runner died while writing it.
    """
    message = _decode(line, _EVENTS, "ev")
    assert isinstance(message, Progress | Ready | Failed | Step | Tokens | Text)
    return message


def _sparse(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key == "id" or value != _ROW_DEFAULTS[key]}


def _decode(line: bytes, kinds: dict[str, type[Any]], tag: str) -> object:
    try:
        fields = json.loads(line)
        kind = kinds[fields[tag]]
        if kind is Load:
            settings = fields["settings"]
            fields["settings"] = EngineSettings(
                **{
                    **settings,
                    "tensor_split": tuple(settings["tensor_split"]),
                    "workers": tuple(settings["workers"]),
                }
            )
            fields["adapters"] = tuple((path, scale) for path, scale in fields["adapters"])
            if fields["keepsakes"] is not None:
                fields["keepsakes"] = Keepsakes(**fields["keepsakes"])
        elif kind is Generate:
            fields["sampling"] = _sampling(fields["sampling"])
            if fields["constraint"] is not None:
                fields["constraint"] = _constraint(fields["constraint"])
        elif kind is Embed:
            fields["texts"] = tuple(fields["texts"])
            fields["tokens"] = tuple(tuple(ids) for ids in fields["tokens"])
        elif kind is Step:
            fields["rows"] = tuple(_row(row) for row in fields["rows"])
        if kind is Tokens:
            fields["pieces"] = tuple(fields["pieces"])
        for name in fields.keys() & {"tokens", "images"}:
            fields[name] = tuple(fields[name])
        return kind(**fields)
    except (ValueError, KeyError, TypeError) as error:
        # Neither the line nor what broke it is quoted: both can hold a prompt or an answer.
        raise RunnerCrashedError(
            f"broken line of {len(line)} bytes between server and runner: {type(error).__name__}"
        ) from None


def _sampling(fields: dict[str, Any]) -> SamplingOptions:
    for name in ("stop", "dry_sequence_breakers"):
        fields[name] = tuple(fields[name])
    fields["logit_bias"] = tuple((token, bias) for token, bias in fields["logit_bias"])
    if fields["lora"] is not None:
        fields["lora"] = tuple((number, scale) for number, scale in fields["lora"])
    return SamplingOptions(**fields)


def _constraint(fields: dict[str, Any]) -> Constraint:
    reasoning = fields["reasoning"]
    fields["reasoning"] = Reasoning(**reasoning) if reasoning is not None else None
    return Constraint(**{**fields, "begins": tuple(fields["begins"])})


def _row(fields: dict[str, Any]) -> Row:
    for name in ("tokens", "logprobs", "prompt_ids", "relaxed", "vectors"):
        if name in fields:
            fields[name] = tuple(fields[name])
    return Row(**fields)
