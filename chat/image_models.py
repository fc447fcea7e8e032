"""Which models take images, and what an image costs there at most: the operator's word `image_tokens`, as at /v1.

Pure but for the settings that it reads. Owns the refusal of the others. Must not know whose images they are.
"""

from __future__ import annotations

from collections.abc import Collection

from chat.allowed import allowed_of
from chat.dialect import words_for
from chat.errors import ImagesNotTaken
from chat.history import PART_OVERHEAD
from chat.passed import Kind
from chat.pricing import kinds_for, members_of, priced_models


def tokens_of_image(model: str) -> int | None:
    """The most that one is billed, with what sets it off; of a group by any of its members. None: it takes none."""
    tokens = words_for(*members_of(model)).image_tokens
    return None if tokens is None else tokens + PART_OVERHEAD


def tokens_beside_name(model: str) -> int | None:
    """What one adds to a message at most beside the line that names it. None: the model takes none."""
    tokens = tokens_of_image(model)
    return None if tokens is None else tokens + PART_OVERHEAD


def models_with_images(*allowed: Collection[str] | None) -> list[str]:
    """Those that take images, of what may be called."""
    found = allowed_of(priced_models(), *allowed)
    return [model for model in found if Kind.CHAT in kinds_for(model) and tokens_of_image(model) is not None]


def images_not_taken(model: str, *allowed: Collection[str] | None) -> ImagesNotTaken:
    return ImagesNotTaken(model, others=models_with_images(*allowed))
