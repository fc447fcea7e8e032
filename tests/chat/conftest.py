"""What tests of what is bought share."""

import pytest

from tests.support.clients import door, openai
from tests.support.money import lossy, model, trusted

__all__ = ["door", "lossy", "model", "openai", "trusted"]

PATIENCE_SECONDS = 30.0


@pytest.fixture(autouse=True)
def _patience(request):
    """An answer waits for its commit, and a prompt for its count, however busy the machine is: with its answer in hand
    a test looks at what was booked. Not where it takes the authority's answers away.
    """
    if "app" not in request.fixturenames or "lossy" in request.fixturenames:
        yield
        return
    from billing import reservations
    from chat import llm
    from chat.streams import Answering

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answering.finished, "__defaults__", (PATIENCE_SECONDS,))
        patch.setattr(reservations, "SETTLE_SECONDS", PATIENCE_SECONDS)
        patch.setattr(llm, "COUNT_SECONDS", PATIENCE_SECONDS)
        yield
