"""What tests of money share."""

from tests.support.money import lossy, lossy_admin

__all__ = ["lossy", "lossy_admin"]
