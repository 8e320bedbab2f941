"""What is to be embedded or ranked, as tokens; in the I/O thread of a runner."""

from __future__ import annotations

from server.errors import EngineRefusedError
from server.runner import protocol
from server.runner.embedding import Frame, Job
from server.runner.library import Engine


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
