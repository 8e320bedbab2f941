"""Texts as tokens: to be embedded or ranked, or because a client asks; in the I/O thread."""

from __future__ import annotations

from server.errors import EngineRefusedError
from server.runner import protocol
from server.runner.embedding import Frame, Job
from server.runner.library import Engine
from server.runner.ranking import ranked_text
from server.runner.vocabulary import Vocabulary


def prepare_texts(engine: Engine, command: protocol.Embed) -> Job:
    """Tokenize what is to be embedded or ranked.

    Raises:
        EngineRefusedError: the model cannot do this, or a text is empty or too long.
    """
    shape, vocabulary = engine.shape, engine.vocabulary
    if shape.ranks and command.query is None:
        raise EngineRefusedError("this model ranks documents and makes no embeddings")
    if not shape.ranks and command.query is not None:
        raise EngineRefusedError("this model is no reranker")
    limit, truncate = shape.text_tokens, command.truncate
    frame = vocabulary.frame
    for ids in command.tokens:
        vocabulary.check(ids)
    bare = Frame()
    texts = [bare.around(ids, limit=limit, truncate=truncate) for ids in command.tokens]
    cut = [vocabulary.tokenize(text, special=True) for text in command.texts]
    if command.query is None:
        texts += [frame.around(text, limit=limit, truncate=truncate) for text in cut]
    elif engine.rank_template:
        texts += [
            ranked_text(
                engine.rank_template,
                command.query,
                text,
                tokenize=lambda prompt: vocabulary.prompt(prompt, add_bos=True),
                spellings=vocabulary.spellings,
                limit=limit,
                truncate=truncate,
            )
            for text in command.texts
        ]
    else:
        query = vocabulary.tokenize(command.query, special=True)
        texts += [frame.pair(query, text, limit=limit, truncate=truncate) for text in cut]
    if not all(texts):
        raise EngineRefusedError("input content cannot be empty")
    return Job(
        request=command.id,
        texts=texts,
        dimensions=command.dimensions,
        normalize=command.normalize,
        form=command.form,
        tenant=command.tenant,
        scope=command.scope,
    )


def tokenized(engine: Engine, command: protocol.Tokenize) -> tuple[int, ...]:
    """The tokens of a text, framed as it is wished."""
    vocabulary = engine.vocabulary
    if command.parse_special and not command.framed:
        return vocabulary.prompt(command.text, add_bos=command.add_bos)
    tokens = vocabulary.tokenize(command.text, special=command.parse_special)
    if not command.framed:
        return vocabulary.with_bos(tokens) if command.add_bos else tokens
    frame = _known_frame(vocabulary)
    return (*frame.opening, *tokens, *frame.closing)


def pieces_of(engine: Engine, tokens: tuple[int, ...]) -> tuple[str, ...]:
    """The bytes of tokens, in hexadecimal."""
    return tuple(engine.vocabulary.whole_piece(token).hex() for token in tokens)


def _known_frame(vocabulary: Vocabulary) -> Frame:
    try:
        return vocabulary.frame
    except EngineRefusedError:
        return Frame()
