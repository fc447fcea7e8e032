"""What tests of what is bought share."""

from tests.support.money import lossy, model, trusted

__all__ = ["lossy", "model", "trusted"]
