"""What tests of money share."""

from tests.support.money import lossy

__all__ = ["lossy"]
