"""What tests of what is bought share."""

from tests.support.clients import door, openai
from tests.support.money import lossy, model, trusted
from tests.support.patience import patience

__all__ = ["door", "lossy", "model", "openai", "patience", "trusted"]
