"""Images of requests on their way into prompts; in the I/O thread."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from itertools import chain

from server.errors import EngineRefusedError
from server.runner import protocol
from server.runner.library import Engine
from server.runner.shape import Shape
from server.runner.sight import Seen


def see(engine: Engine, images: Sequence[str]) -> tuple[Seen, ...]:
    """Files in base64, as the model's projector wants them.

    Raises:
        EngineRefusedError: the model has no projector, or one cannot be decoded.
    """
    if not images:
        return ()
    if engine.sight is None:
        raise EngineRefusedError("this model sees no images")
    try:
        files = [base64.b64decode(image, validate=True) for image in images]
    except (binascii.Error, ValueError) as error:
        raise EngineRefusedError("images: expected base64") from error
    return engine.sight.take(files)


def put_images(tokens: Sequence[int], seen: Sequence[Seen], shape: Shape) -> tuple[int, ...]:
    """A prompt with what images become in the places that stand for them.

    Raises:
        EngineRefusedError: it names an image that is not there, or one is larger than a step.
    """
    if shape.whole_pictures and not shape.parted_pictures:
        most = max((one.count for image in seen for one in image.pictures), default=0)
        if most > shape.step_tokens:
            raise EngineRefusedError(
                f"images: this model computes {most} tokens of an image at once, and a step has "
                f"{shape.step_tokens}: load it with a larger num_batch"
            )
    if min(tokens, default=0) < -len(seen):
        raise EngineRefusedError("images: the prompt names more images than there are")
    parts = ((token,) if token >= 0 else seen[-1 - token].prompt for token in tokens)
    return tuple(chain.from_iterable(parts))


def looked(engine: Engine, command: protocol.Look) -> protocol.Tokens:
    """How many tokens each image takes."""
    try:
        seen = see(engine, command.images)
    except EngineRefusedError as refusal:
        return protocol.Tokens(id=command.id, tokens=(), refused=str(refusal))
    return protocol.Tokens(id=command.id, tokens=tuple(len(one.prompt) for one in seen))


def longest_step_s(engine: Engine) -> float:
    """Seconds a full batch takes, or a picture where this is longer, as measured at the load."""
    batch_s = engine.shape.batch_tokens / engine.prefill_rate
    return max(batch_s, engine.sight.picture_s) if engine.sight is not None else batch_s
