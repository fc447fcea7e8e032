from tests.support.money import lossy, model, trusted

__all__ = ["lossy", "model", "trusted"]
