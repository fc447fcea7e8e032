"""The sweep in the plane's loop: every few seconds expired holds are given back and old answers forgotten."""

from __future__ import annotations

import asyncio
import logging
import random

import psycopg

from billing.authority.runtime.pool import Pool

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
BATCH = 1_000
PURGE_EVERY = 60  # rounds


async def sweep_forever(pool: Pool) -> None:
    """Never ends and never fails: a database that is away is tried again at the next round."""
    rounds = 0
    while True:
        # Not in step with other sweepers: together they would only skip each other's rows.
        await asyncio.sleep(EVERY_SECONDS * random.uniform(0.9, 1.0))  # noqa: S311
        rounds += 1
        try:
            while await _run(pool, "SELECT sweep(p_limit => %(limit)s)") == BATCH:
                pass
            if rounds % PURGE_EVERY == 1:
                while await _run(pool, "SELECT purge(p_limit => %(limit)s)") >= BATCH:
                    pass
        except (psycopg.Error, OSError) as error:
            log.warning("sweep put off: %s", str(error).strip())


async def _run(pool: Pool, statement: str) -> int:
    rows = await pool.rows(statement, {"limit": BATCH})
    count = int(rows[0][0])
    if count:
        log.info("%s: %d", statement.removeprefix("SELECT ").partition("(")[0], count)
    return count
