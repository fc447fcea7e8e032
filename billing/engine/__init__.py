"""The engine: the one implementation of a paid call, asynchronous.

    order.py       what is asked for                   rules.py       how much to hold, what was probably used (pure)
    opening.py     reserve, wait, fit, refuse          waiting.py     who waits for whom in this process
    call.py        the call under way and its end      settling.py    commit, event, the line: by a hold's row
    recovery.py    a reserve whose answer was lost     habits.py      what models usually need
    authority.py   the wire to the authority           store.py, statements.py   plain SQL
    engine.py      what a process's calls share        loop.py        the engine for code that is not asynchronous

Rules and states are pure; the database and the authority are met at the edge. Nothing here knows what is bought.
"""

from __future__ import annotations

from billing.engine.loop import fetch, start_plane, stop_plane

__all__ = ["fetch", "start_plane", "stop_plane"]
