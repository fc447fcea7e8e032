"""The circuit breaker: an upstream that is down is not asked again and again, and holds nobody's money meanwhile.

Owns which upstreams this process takes for down, by their address and their name for the model. Several failures in a
row open the breaker for some seconds; then one call is let through, and what becomes of it decides. Must not know what
is bought, nor what it costs.

A tenant's own requests must not take a model from its neighbours. What fails while it can be reached, perhaps because
of the request, opens the breaker for the tenant that it failed for, and for all only once it has failed for others too.
Used on the engine's loop alone.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field

from chat.errors import Fault, ModelBusy

logger = logging.getLogger(__name__)

FAILURES = 5
FIRST_SECONDS, MOST_SECONDS = 2.0, 60.0
# A call that was let through and does not tell what became of it, for example for want of money, is not waited for.
PROBE_SECONDS = 10.0
# Of other tenants than the one that failed most: so few may be their own fault.
OTHERS_FAILURES = 2

_DOWN = "The language model is not available just now; try again in a moment."


@dataclass(slots=True)
class Circuit:
    """One upstream since it last answered. `met`: how often it failed each tenant. Clocks are this machine's."""

    failures: int = 0
    unreachable: int = 0
    met: dict[str, int] = field(default_factory=dict)
    opened: int = 0
    open_until: float = 0.0
    probed_at: float = -math.inf

    def is_open_for(self, tenant: str) -> bool:
        if not self.opened:
            return False
        return self._is_down_for_all or self.met.get(tenant, 0) >= FAILURES

    @property
    def _is_down_for_all(self) -> bool:
        if self.unreachable >= FAILURES:
            return True
        return self.failures >= FAILURES and self.failures - max(self.met.values()) >= OTHERS_FAILURES

    def failed(self, tenant: str, fault: Fault) -> bool:
        """Whether it opened with this."""
        self.failures += 1
        self.unreachable += fault is Fault.UNREACHABLE
        self.met[tenant] = self.met.get(tenant, 0) + 1
        now = time.monotonic()
        self.probed_at = -math.inf
        if now < self.open_until or not (self._is_down_for_all or self.met[tenant] >= FAILURES):
            return False
        self.open_until = now + min(FIRST_SECONDS * 2**self.opened, MOST_SECONDS)
        self.opened += 1
        return True

    def wait(self) -> float:
        """Seconds until one may ask again; 0.0 for the one who may now, and whom the others wait for."""
        now = time.monotonic()
        until = max(self.open_until, self.probed_at + PROBE_SECONDS)
        if now < until:
            return until - now
        self.probed_at = now
        return 0.0


_circuits: dict[tuple[str, str], Circuit] = {}


@dataclass(frozen=True, slots=True)
class Upstream:
    """A model at an address, as one tenant asks it: whom answers and failures are told."""

    address: str
    model: str
    tenant: str

    @property
    def _name(self) -> tuple[str, str]:
        return self.address, self.model

    def refuse_if_down(self) -> None:
        """Raises ModelBusy. Nothing is held yet, and nothing was sent."""
        circuit = _circuits.get(self._name)
        if circuit is not None and circuit.is_open_for(self.tenant) and (seconds := circuit.wait()) > 0:
            raise ModelBusy(_DOWN, retry_after_ms=max(1_000, math.ceil(seconds) * 1_000))

    def answered(self) -> None:
        """It is there, whatever it said."""
        if _circuits.pop(self._name, None) is not None:
            logger.info("A model answers again: model=%s", self.model)

    def failed(self, fault: Fault) -> None:
        if fault is Fault.NONE:
            self.answered()
            return
        circuit = _circuits.setdefault(self._name, Circuit())
        if circuit.failed(self.tenant, fault):
            logger.error("A model is taken for down: model=%s failures=%d", self.model, circuit.failures)


def forget() -> None:
    """As in a process that has asked nobody yet."""
    _circuits.clear()
