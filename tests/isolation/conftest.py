"""What tests of who meets whom share."""

from tests.support.patience import patience

__all__ = ["patience"]
