"""What tests of what is bought share."""

from tests.support.clients import door, openai
from tests.support.money import lossy, model, trusted

__all__ = ["door", "lossy", "model", "openai", "trusted"]
