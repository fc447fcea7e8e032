"""What tests of money share."""

from tests.support.money import lossy, lossy_admin
from tests.support.patience import patient

__all__ = ["lossy", "lossy_admin", "patient"]
