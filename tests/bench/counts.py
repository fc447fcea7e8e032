"""How many SQL statements and HTTP requests one call makes, counted on the wire in a start of the stack for this alone.

Owns reading them. Statements are those of the product's own processes, without the authority's: it keeps the
connections that it had before logging was switched on. HTTP requests pass through counting proxies.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from tests.bench.cells import Cell, Model, Sizes, measure
from tests.bench.stacks import Stack

CALLS = 40
STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]*): (.*)")
CELLS = [Cell.parse(text) for text in ("plain:1", "plain+session:1", "stream:1")]


@dataclass(frozen=True)
class Counted:
    """By call. Kinds of statement are their first words, kinds of request their method and path."""

    statements: Counter[str]
    requests: Counter[str]
    model: int
    calls: int
    wrong: list[str]

    def text(self) -> str:
        asked = ", ".join(f"{name} {count / self.calls:.2g}" for name, count in self.requests.most_common(4))
        return (
            f"{self.statements.total() / self.calls:.1f} statements, {self.requests.total() / self.calls:.1f} requests "
            f"to the authority ({asked}), {self.model / self.calls:.1f} to the model"
        )

    def listing(self) -> str:
        return "\n".join(f"    {count / self.calls:6.2f}  {text}" for text, count in self.statements.most_common(60))


def count(stack: Stack, server: Model, log: Path) -> dict[str, Counted]:
    """For each kind of call. The stack is started anew before, and again after."""
    name = sql.Identifier(stack.connection.info.dbname)
    proxies = Model(stack.runtime_port, stack.admin_port)
    try:
        stack.connection.execute(sql.SQL("ALTER DATABASE {} SET log_statement = 'all'").format(name))
        stack.stop()
        stack.start(runtime_port=proxies.counted[0], admin_port=proxies.counted[1])
        measure(Cell.parse("plain:8"), Sizes(seconds=1.0), stack, server)  # opens every connection
        return {str(cell): _count(cell, stack, server, proxies, log) for cell in CELLS}
    finally:
        stack.connection.execute(sql.SQL("ALTER DATABASE {} RESET log_statement").format(name))
        stack.stop()
        stack.start()
        proxies.stop()


def _count(cell: Cell, stack: Stack, server: Model, proxies: Model, log: Path) -> Counted:
    proxies.behave()
    start = log.stat().st_size
    outcome = measure(cell, Sizes(times=CALLS), stack, server)
    with log.open(errors="replace") as file:
        file.seek(start)
        said = file.read()
    statements = Counter(_shape(found.group(1)) for found in STATEMENT.finditer(said))
    requests = Counter(proxies.counts()["requests"])
    return Counted(statements, requests, server.counts()["calls"], max(outcome.tally["calls"], 1), outcome.wrong)


def _shape(statement: str) -> str:
    """Without its values, so that equal statements are counted together."""
    return re.sub(r"'[^']*'|\b[a-z0-9_]*\d[a-z0-9_]*\b", "…", " ".join(statement.split()))[:110]
