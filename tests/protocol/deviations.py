"""Where this authority answers otherwise than it was recorded, pair by pair, and why. Whatever is not here must fit."""

from __future__ import annotations

# Scenarios that are wholly about a behaviour we do not share; tests/authority has what we do instead.
ELSEWHERE = {
    "big_funding": "funding counts in whole numbers to 2^63-1 and refuses to pass it",
    "closed_reservations": "a close ends the tenant's reservations, so none is left to be released",
    "closed_sweep": "what was held is given back once, by the close",
    "coercions": "floats, numeric text, ordinals and text after the body are refused",
    "fund_idempotency_shared": "a funding key belongs to its tenant, scope and unit",
    "lookup_leak": "a tenant's key cannot look up a neighbour's ledger",
}
# The real servers hear of a change within a minute, so that the recording waits for it. Here nobody waits: it holds at
# once, which is more.
AT_ONCE = {"tenant_defaults_later"}
BY_NETWORK = "what a test call meets depends on the network"  # it may also fit
_KINDER = "an unknown path is 404, a wrong method 405, another content type 415: not this server's failure"
_UNREADABLE = "a query that cannot be read is the caller's mistake: 400"
_PAIRS: dict[str, dict[int, str]] = {
    "balances": {32: _UNREADABLE},
    "list_pages": {38: _UNREADABLE},
    "paths": {
        **dict.fromkeys([*range(4, 25, 2), 25, 26, 42, *range(67, 73), *range(74, 78)], _KINDER),
        **dict.fromkeys([27, 28, 30, 37], _UNREADABLE),
    },
    "webhooks": {62: BY_NETWORK},
}


def listed(scenario: str) -> dict[int, str]:
    return _PAIRS.get(scenario, {})


def deviation(scenario: str, step: int) -> str | None:
    return listed(scenario).get(step)
