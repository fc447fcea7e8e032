"""What tests of what is bought share."""

from tests.support.clients import door
from tests.support.money import lossy, model, trusted

__all__ = ["door", "lossy", "model", "trusted"]
