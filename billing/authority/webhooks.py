"""The webhook worker: takes deliveries that are due, sends them, writes down what came of it.

A thread in the admin process. Several workers, in several processes, share the work: a delivery is taken by moving its
due time ahead, in a statement that skips what another worker has locked. No transaction is open while HTTP is spoken.
A worker that dies leaves its deliveries due again after the lease: each is made at least once, and the receiver tells
repeats by the event's id.
"""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from django.db import Error, connection, transaction

from billing.authority.destinations import SETTING, Security
from billing.authority.outbound import Message, Outcome, send

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5
BATCH = 8
LEASE = "60 seconds"  # far longer than a request may take
LIFETIME = "24 hours"

CLAIM = f"""
WITH due AS (
    SELECT d.id FROM delivery d JOIN subscription s ON s.id = d.subscription_id
    WHERE d.status IN ('PENDING', 'RETRYING') AND d.due_at <= clock_timestamp() AND s.status = 'ACTIVE'
    ORDER BY d.due_at, d.id LIMIT %(limit)s FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE delivery AS d SET attempts = d.attempts + 1, due_at = clock_timestamp() + interval '{LEASE}'
FROM due, subscription s, emitted_event e
WHERE d.id = due.id AND s.id = d.subscription_id AND e.id = d.event_id
RETURNING d.id, d.attempts, s.id, s.url, s.sealed_secret, s.sealed_headers::text, s.retry_policy::text,
    e.event_id, e.event_type, e.trace_id, e.request_id, d.trace_flags, emitted_json(e)::text
"""  # noqa: S608 - the lease above
# Only what this attempt took: if the lease ran out and another worker took it, that one's word counts.
SUCCEED = """
UPDATE delivery SET status = 'SUCCESS', completed_at = clock_timestamp(), response_status = %(response_status)s,
    response_time_ms = %(response_time_ms)s, error_message = NULL
WHERE id = %(id)s AND attempts = %(attempt)s AND status IN ('PENDING', 'RETRYING')
"""
FAIL = f"""
UPDATE delivery SET
    status = CASE WHEN %(last)s OR created_at < clock_timestamp() - interval '{LIFETIME}' THEN 'FAILED'
        ELSE 'RETRYING' END,
    due_at = clock_timestamp() + %(delay_ms)s * interval '1 millisecond', completed_at = clock_timestamp(),
    response_status = %(response_status)s, response_time_ms = %(response_time_ms)s, error_message = %(error)s
WHERE id = %(id)s AND attempts = %(attempt)s AND status IN ('PENDING', 'RETRYING') RETURNING status
"""  # noqa: S608 - the life time above
# Before the delivery's row, as in a delete of the subscription: the other way round the two would wait for each other.
LOCK = "SELECT 1 FROM subscription WHERE id = %(id)s FOR NO KEY UPDATE"
RECOVER = """
UPDATE subscription SET consecutive_failures = 0, last_success_at = clock_timestamp(),
    last_triggered_at = clock_timestamp() WHERE id = %(id)s
"""
COUNT = """
UPDATE subscription SET consecutive_failures = consecutive_failures + 1, last_failure_at = clock_timestamp(),
    last_triggered_at = clock_timestamp(),
    status = CASE WHEN status = 'ACTIVE' AND disable_after_failures > 0
        AND consecutive_failures + 1 >= disable_after_failures THEN 'DISABLED' ELSE status END
WHERE id = %(id)s RETURNING subscription_id, tenant_id, status, consecutive_failures, disable_after_failures
"""
TELL_DISABLED = """SELECT emit(p_tenant => %(tenant)s, p_type => 'webhook.disabled', p_scope => NULL,
    p_actor => '{"type": "system"}', p_source => 'cycles-admin', p_data => %(data)s::jsonb, p_context => NULL,
    p_correlation => %(correlation)s)"""


@dataclass(frozen=True)
class Taken:
    """A delivery that this worker took, at its nth attempt."""

    id: int
    attempt: int
    subscription: int
    retry_policy: dict[str, Any]
    message: Message

    def last(self) -> bool:
        return self.attempt > int(self.retry_policy["max_retries"])

    def delay_ms(self) -> int:
        """Before the next attempt: longer each time, up to the most that the subscriber allows."""
        policy = self.retry_policy
        delay = policy["initial_delay_ms"] * policy["backoff_multiplier"] ** (self.attempt - 1)
        return int(min(delay, policy["max_delay_ms"]))


def deliver_due(pool: ThreadPoolExecutor) -> int:
    """One round: take, send side by side, write down. Gives how many it took."""
    taken, security = _take()
    if taken:
        for delivery, outcome in zip(taken, pool.map(lambda d: send(d.message, security), taken), strict=True):
            _settle(delivery, outcome)
    return len(taken)


def _take() -> tuple[list[Taken], Security]:
    with connection.cursor() as cursor:
        cursor.execute(CLAIM, {"limit": BATCH})
        taken = [_taken(row) for row in cursor.fetchall()]
        if not taken:
            return [], Security()
        cursor.execute("SELECT value::text FROM setting WHERE name = %(name)s", {"name": SETTING})
        row = cursor.fetchone()
    return taken, Security.of(json.loads(row[0]) if row else None)


def _taken(row: tuple[Any, ...]) -> Taken:
    (identity, attempt, subscription, url, secret, headers, policy, event_id, event_type, trace_id, request_id, flags,
     body) = row  # fmt: skip
    message = Message(
        url, secret, body.encode(), event_id, event_type, trace_id, flags, request_id,
        json.loads(headers) if headers else None,
    )  # fmt: skip
    return Taken(identity, attempt, subscription, json.loads(policy), message)


def _settle(delivery: Taken, outcome: Outcome) -> None:
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(LOCK, {"id": delivery.subscription})
        came_of_it = {
            "id": delivery.id,
            "attempt": delivery.attempt,
            "response_status": outcome.response_status,
            "response_time_ms": outcome.response_time_ms,
        }
        if outcome.delivered:
            cursor.execute(SUCCEED, came_of_it)
            if cursor.rowcount:
                cursor.execute(RECOVER, {"id": delivery.subscription})
            return
        how_next = {"last": delivery.last(), "delay_ms": delivery.delay_ms(), "error": outcome.error}
        cursor.execute(FAIL, {**came_of_it, **how_next})
        ended = cursor.fetchone()
        if ended is not None and ended[0] == "FAILED":
            _count_failure(cursor, delivery)


def _count_failure(cursor: Any, delivery: Taken) -> None:
    """One more delivery given up in a row; too many of them disable the subscription, and that is told."""
    cursor.execute(COUNT, {"id": delivery.subscription})
    row = cursor.fetchone()
    if row is None:
        return
    subscription_id, tenant_id, status, failures, limit = row
    if status == "DISABLED" and failures == limit:
        told = {"subscription_id": subscription_id, "tenant_id": tenant_id, "new_status": status, "changed_fields": []}
        cursor.execute(
            TELL_DISABLED,
            {"tenant": tenant_id, "data": json.dumps(told), "correlation": f"webhook_disable:{subscription_id}"},
        )


def run_forever(stop: threading.Event) -> None:
    """Never fails: a database that is away is tried again at the next round."""
    with ThreadPoolExecutor(BATCH, thread_name_prefix="webhook") as pool:
        while not stop.is_set():
            try:
                idle = deliver_due(pool) < BATCH
            except Error as error:
                log.warning("webhooks put off: %s", str(error).strip())
                connection.close()
                idle = True
            except Exception:  # the thread's edge: one broken delivery must not end all others
                log.exception("a webhook delivery failed in a way that nobody thought of")
                idle = True
            if idle:
                stop.wait(IDLE_SECONDS)


def start() -> threading.Event:
    """Start the worker in this process; set what it gives to end it."""
    stop = threading.Event()
    threading.Thread(target=run_forever, args=(stop,), daemon=True, name="webhooks").start()
    return stop
