"""Tokenizer files of a checkpoint as GGUF keeps a vocabulary. Pure.

Three kinds: byte-level BPE (``tokenizer.json``), SentencePiece BPE (``tokenizer.model``, or the
same as ``tokenizer.json``), and WordPiece (BERT).

Sources: the ``tokenizers`` file format; sentencepiece_model.proto; ``enum llama_token_type`` in
llama.h; the splitting expressions that llama-vocab.cpp quotes for each ``tokenizer.ggml.pre``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bundler.convert.sentencepiece import Piece, read_model
from bundler.errors import PackError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens; SentencePiece counts them alike."""

_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED: Final = (
    r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+{0}"
    r"|[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*{0}|"
)
_CASED_TAIL: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: Final = {
    _LETTERS + r"\p{N}{1,3}" + _TAIL: "llama-bpe",
    _LETTERS + r"\p{N}" + _TAIL: "qwen2",
    _CASED.replace("{0}", "") + r"\p{N}" + _CASED_TAIL: "tekken",
    _CASED.replace("{0}", _CONTRACTIONS + "?") + r"\p{N}{1,3}" + _CASED_TAIL: "gpt-4o",
}
"""Splitting expression → llama.cpp's name of it."""
_WHOLE_WORDS: Final = ("llama-bpe", "tekken")
"""For these llama.cpp takes a word that is a token as it is, as ``ignore_merges`` asks."""
_SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A vocabulary as GGUF holds it.

    Attributes:
        model: ``gpt2``, ``llama`` or ``bert``.
        tokens: texts by id, with ``kinds`` and, for SentencePiece, ``scores``.
        merges: pairs of a BPE, joined by a space.
        pre: how text is split before BPE.
        flags: further keys behind ``tokenizer.ggml.``.
        warnings: what the packer should know.
    """

    model: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    pre: str = "default"
    flags: Mapping[str, bool | int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_vocabulary(
    tokenizer: Mapping[str, Any] | None,
    pieces: bytes | None,
    config: Mapping[str, Any],
    rows: int,
) -> Vocabulary:
    """The vocabulary of a checkpoint.

    Args:
        tokenizer: ``tokenizer.json``, if there is one.
        pieces: ``tokenizer.model``, if there is one.
        config: ``tokenizer_config.json``, or empty.
        rows: of the embedding matrix: as many tokens the vocabulary gets.

    Raises:
        PackError: neither file, or one that is not understood.
    """
    model = tokenizer.get("model", {}) if tokenizer else {}
    kind = model.get("type", "BPE" if "merges" in model else "") if tokenizer else ""
    try:
        if kind == "WordPiece" and tokenizer is not None:
            found = _word_pieces(tokenizer, model)
        elif pieces is not None:
            found = _sentence_pieces(pieces, tokenizer, config)
        elif tokenizer is not None and kind == "BPE" and model.get("byte_fallback"):
            found = _pieces_of_json(tokenizer, model)
        elif tokenizer is not None and kind == "BPE":
            found = _bytes_of_json(tokenizer, model)
        else:
            raise PackError(
                f"tokenizer: expected BPE, WordPiece or SentencePiece, found {kind or 'none'}",
                hint="the directory needs tokenizer.json or tokenizer.model",
            )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise PackError(
            f"tokenizer.json: not understood: {type(error).__name__}: {error}",
            hint="pack a GGUF file of this model instead",
        ) from error
    return _fitted(found, rows)


def _fitted(found: Vocabulary, rows: int) -> Vocabulary:
    """As many tokens as the embedding has rows: what lacks is unused, what is over is dropped."""
    count = len(found.tokens)
    warnings = found.warnings
    if count > rows:
        warnings += (f"{count - rows} tokens without a row in the embedding are left out",)
    unused = [f"[PAD{place}]" for place in range(count, rows)]
    return Vocabulary(
        model=found.model,
        tokens=(*found.tokens[:rows], *unused),
        kinds=(*found.kinds[:rows], *(UNUSED for _ in unused)),
        scores=(*found.scores[:rows], *(-10_000.0 for _ in unused)) if found.scores else (),
        merges=found.merges,
        pre=found.pre,
        flags=found.flags,
        warnings=warnings,
    )


def _added(tokenizer: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Added tokens by id: text, and whether it is special."""
    return {
        int(one["id"]): (str(one["content"]), bool(one.get("special")))
        for one in tokenizer.get("added_tokens") or ()
    }


def _by_id(vocabulary: Mapping[str, int], added: Mapping[int, tuple[str, bool]]) -> list[str]:
    texts = {number: text for text, number in vocabulary.items()}
    texts |= {number: text for number, (text, _) in added.items()}
    count = max(texts, default=-1) + 1
    if count > 4 * len(texts) + 1024:
        raise ValueError("token ids with wide gaps")
    return [texts.get(number, f"[PAD{number}]") for number in range(count)]


def _bytes_of_json(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Vocabulary:
    """Byte-level BPE, as GPT-2 began it."""
    pre = _splitting(tokenizer, model)
    added = _added(tokenizer)
    tokens = _by_id(model["vocab"], added)
    known = {*model["vocab"].values(), *added}
    kinds = [
        (CONTROL if added[number][1] else USER_DEFINED)
        if number in added
        else (NORMAL if number in known else UNUSED)
        for number in range(len(tokens))
    ]
    return Vocabulary(
        model="gpt2",
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        merges=tuple(_merges(model)),
        pre=pre,
        flags={**_begins_and_ends(tokenizer), "add_space_prefix": False},
    )


def _merges(model: Mapping[str, Any]) -> Iterator[str]:
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield f"{left} {right}"


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A pre-tokenizer, normalizer or post-processor as the list of its steps."""
    if not part:
        return []
    for inner in ("pretokenizers", "normalizers", "processors"):
        if part.get("type") == "Sequence" and inner in part:
            return [step for one in part[inner] for step in _steps(one)]
    return [part]


def _splitting(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """llama.cpp's name for how text is split.

    Raises:
        PackError: it is split in a way that llama.cpp has no name for here.
    """
    for step in _steps(tokenizer.get("normalizer")):
        if step["type"] != "NFC":
            raise PackError(f"tokenizer.json: normalizer {step['type']!r:.40} is not converted")
    steps = _steps(tokenizer.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    if not kinds or kinds[-1] != "ByteLevel":
        raise PackError(f"tokenizer.json: expected byte-level BPE, found {kinds}")
    if any(step.get("add_prefix_space") for step in steps):
        raise PackError("tokenizer.json: add_prefix_space before BPE is not converted")
    own_expression = steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and own_expression:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and own_expression and steps[0].get("individual_digits"):
        return "smollm"
    expression = ""
    if kinds == ["Split", "ByteLevel"] and not own_expression:
        expression = str(steps[0]["pattern"].get("Regex", ""))
    name = _SPLITS.get(expression)
    whole_words = bool(model.get("ignore_merges"))
    if name == "llama-bpe" and not whole_words:
        name = "dbrx"
    if name is None or (name in _WHOLE_WORDS) != whole_words:
        raise PackError(
            f"tokenizer.json: text is split in a way this release does not know: "
            f"{expression or kinds!r:.300}",
            hint="pack a GGUF file of this model instead",
        )
    return name


def _begins_and_ends(tokenizer: Mapping[str, Any]) -> dict[str, bool | int]:
    """Whether a text gets tokens before and after it, and which, from the post-processor."""
    for step in _steps(tokenizer.get("post_processor")):
        if step["type"] == "TemplateProcessing":
            single = [next(iter(one)) for one in step["single"]]
            begins = single[:1] == ["SpecialToken"]
            found: dict[str, bool | int] = {
                "add_bos_token": begins,
                "add_eos_token": len(single) > 1 and single[-1] == "SpecialToken",
            }
            if begins:
                text = step["single"][0]["SpecialToken"]["id"]
                found["bos_token_id"] = int(step["special_tokens"][text]["ids"][0])
            return found
    return {"add_bos_token": False, "add_eos_token": False}


def _word_pieces(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Vocabulary:
    """BERT: GGUF marks the start of a word, the checkpoint its continuation."""
    prefix = model.get("continuing_subword_prefix", "##")
    added = _added(tokenizer)
    texts = _by_id(model["vocab"], added)
    special = {text for text, is_special in added.values() if is_special}
    tokens, kinds = [], []
    for text in texts:
        is_special = text in special
        kinds.append((UNKNOWN if text == model["unk_token"] else CONTROL) if is_special else NORMAL)
        if is_special:
            tokens.append(text)
        else:
            tokens.append(text[len(prefix) :] if text.startswith(prefix) else _SPACE + text)
    normalizer = (tokenizer.get("normalizer") or {"type": "none"}) | {}
    if normalizer["type"] != "BertNormalizer" or not normalizer.get("clean_text", True):
        raise PackError("tokenizer.json: expected BERT's normalizer, found another")
    lowercase = bool(normalizer.get("lowercase", True))
    accents = normalizer.get("strip_accents")
    ids = {text: number for number, text in enumerate(texts)}
    flags: dict[str, bool | int] = {
        "token_type_count": 2,
        "normalizer.lowercase": lowercase,
        "normalizer.strip_accents": lowercase if accents is None else bool(accents),
        "unknown_token_id": ids[model["unk_token"]],
    }
    # The misspelling is the key's.
    for text, key in (
        ("[CLS]", "bos_token_id"),
        ("[CLS]", "cls_token_id"),
        ("[SEP]", "eos_token_id"),
        ("[SEP]", "seperator_token_id"),
        ("[PAD]", "padding_token_id"),
        ("[MASK]", "mask_token_id"),
    ):
        if text in ids:
            flags[key] = ids[text]
    return Vocabulary(model="bert", tokens=tuple(tokens), kinds=tuple(kinds), flags=flags)


def _sentence_pieces(
    data: bytes, tokenizer: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> Vocabulary:
    """``tokenizer.model``, and the tokens that were added to it later."""
    model = read_model(data)
    pieces = list(model.pieces)
    added = _added(tokenizer) if tokenizer else {}
    for number, one in (config.get("added_tokens_decoder") or {}).items():
        added.setdefault(int(number), (str(one["content"]), bool(one.get("special"))))
    for number, (text, special) in sorted(added.items()):
        kind = CONTROL if special else USER_DEFINED
        if number < len(pieces):
            before = pieces[number]
            # Spaces stand as a mark in pieces; what is known as a byte or unknown stays it.
            if before.kind in (NORMAL, UNUSED, USER_DEFINED) or before.text != text:
                pieces[number] = Piece(text=text, score=before.score, kind=kind)
            continue
        while len(pieces) < number:
            pieces.append(Piece(text=f"[PAD{len(pieces)}]", score=-10_000.0, kind=UNUSED))
        pieces.append(Piece(text=text, score=-1000.0, kind=kind))
    flags: dict[str, bool | int] = {"add_space_prefix": model.adds_space}
    if tokenizer:
        flags |= _begins_and_ends(tokenizer)
    return _of_pieces(pieces, flags)


def _of_pieces(pieces: Sequence[Piece], flags: Mapping[str, bool | int]) -> Vocabulary:
    return Vocabulary(
        model="llama",
        tokens=tuple(piece.text for piece in pieces),
        kinds=tuple(piece.kind for piece in pieces),
        scores=tuple(piece.score for piece in pieces),
        flags=flags,
    )


def _pieces_of_json(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Vocabulary:
    """SentencePiece BPE told as merges: a token's score is the rank of the merge that makes it."""
    replaces = [
        step
        for step in _steps(tokenizer.get("normalizer"))
        if step["type"] == "Replace" and step.get("content") == _SPACE
    ]
    spaces = _steps(tokenizer.get("pre_tokenizer"))
    metaspace = next((step for step in spaces if step["type"] == "Metaspace"), None)
    if not replaces and metaspace is None:
        raise PackError("tokenizer.json: BPE with byte fallback, but spaces are not marked")
    prepends = any(
        step["type"] == "Prepend" for step in _steps(tokenizer.get("normalizer"))
    ) or bool(metaspace and metaspace.get("prepend_scheme", "always") != "never")
    added = _added(tokenizer)
    texts = _by_id(model["vocab"], added)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(_merges(model)):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    unknown = model.get("unk_token")
    pieces = []
    for number, text in enumerate(texts):
        if text == unknown:
            kind = UNKNOWN
        elif number in added:
            kind = CONTROL if added[number][1] else USER_DEFINED
        else:
            kind = BYTE if _is_byte(text) else NORMAL
        pieces.append(Piece(text=text, score=-float(ranks.get(text, len(ranks))), kind=kind))
    return _of_pieces(pieces, {**_begins_and_ends(tokenizer), "add_space_prefix": prepends})


def _is_byte(text: str) -> bool:
    """Whether a token stands for one byte: ``<0x0A>``."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")  # noqa: PLR2004
