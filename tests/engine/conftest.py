"""What tests of the engine share."""

from tests.support.bare_http import certificate, of_server, trusting
from tests.support.money import lossy, model, trusted

__all__ = ["certificate", "lossy", "model", "of_server", "trusted", "trusting"]
