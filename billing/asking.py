"""A connection to Postgres for statements that are asked again and again: each is prepared, then asked by its name.

psycopg's cursor takes a statement apart and looks up what it knows of it each time: a third of what a statement costs.
Owns `AskingConnection`. Values are dumped, sent, read and loaded by psycopg's own parts, and its cursor runs what is
not asked often. Must import nobody of ours but billing.watched: the embedded authority, which may know nobody of the
rest, asks by it, too.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from psycopg import abc, errors
from psycopg.adapt import PyFormat, Transformer
from psycopg.generators import execute
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from billing.watched import WatchedConnection

Params = Sequence[Any] | Mapping[str, Any] | None
Row = tuple[Any, ...]

# Times that a text is asked before it is prepared, which is a round trip more: a tenant's schema stands in its
# statements, and many are asked once.
BEFORE = 2
# Of one connection. A backend keeps the plans of each.
KEPT = 300

_PLACE = re.compile(r"%(?:\((\w+)\))?(.)", re.DOTALL)


class AskingConnection(WatchedConnection[Row]):
    """In autocommit, and asked by one at a time. All but `rows` is psycopg's."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._asked: OrderedDict[tuple[str, bool], _Statement] = OrderedDict()  # the last asked at the end
        self._names = 0  # how many all of these have
        # A pooler may hand over another connection's session: a name of that one must not be found there, for it is
        # that of another text, and perhaps another tenant's.
        self._mark = secrets.token_hex(6).encode()
        self._next_name = 0
        self._values: abc.Transformer | None = None  # between Python and Postgres

    async def rows(self, query: str, params: Params = None) -> list[Row]:
        """The rows of one statement: what a cursor's `execute` and `fetchall` give, and what they raise."""
        # First, for what is done must not be told as failed because of something that comes after it.
        while self._names > KEPT or len(self._asked) > KEPT:
            await self._forget_oldest()
        key = (query, params is None)
        statement = self._asked.get(key)
        if statement is None:
            statement = self._asked[key] = _Statement()
        else:
            self._asked.move_to_end(key)
        if statement.times >= BEFORE:
            try:
                return await self._by_name(query, statement, params)
            except (errors.FeatureNotSupported, errors.InvalidSqlStatementName):
                # A migration has changed the type of what it reads, or somebody else has ended what was prepared. It
                # would be refused for as long as the name is kept, and nothing of it was done.
                await self.forget_plans()
        cursor = await self.execute(query, params, prepare=False)
        statement.times += 1
        # Not `description`, which names and types every column of every answer.
        return await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []

    async def forget_plans(self) -> None:
        """Of all that was prepared."""
        self._asked.clear()
        self._names = 0
        await self.execute("DEALLOCATE ALL", prepare=False)

    async def close(self) -> None:
        """Ends the session."""
        self._values = None  # it knows this connection
        await super().close()

    async def _by_name(self, query: str, statement: _Statement, params: Params) -> list[Row]:
        values = self._values
        if values is None:
            values = self._values = Transformer(self)
        if not statement.text:
            if params is not None:
                query, places = _numbered(query)
                statement.order, statement.formats = list(places), list(places.values())
            statement.text = query.encode(values.encoding)
        async with self.lock:
            dumped = values.dump_sequence(_in_order(statement.order, params), statement.formats)
            types = values.types or ()
            name = statement.names.get(types)
            if name is None:
                name = b"asked_%s_%d" % (self._mark, self._next_name)
                self._next_name += 1
                self.pgconn.send_prepare(name, statement.text, types)
                await self._result()
                statement.names[types] = name
                self._names += 1
            self.pgconn.send_query_prepared(name, dumped, values.formats)
            result = await self._result()
            values.set_pgresult(result)
            try:
                return values.load_rows(0, result.ntuples, tuple) if result.nfields else []
            finally:
                values.set_pgresult(None)  # which would keep all rows of a long conversation until the next statement

    async def _result(self) -> PGresult:
        results: list[PGresult] = await self.wait(execute(self.pgconn))
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result, encoding=self.info.encoding)
        return results[0]

    async def _forget_oldest(self) -> None:
        _, statement = self._asked.popitem(last=False)
        self._names -= len(statement.names)
        for name in statement.names.values():
            with suppress(errors.InvalidSqlStatementName):
                await self.execute(b"DEALLOCATE " + name, prepare=False)


@dataclass(slots=True)
class _Statement:
    """What a connection knows of a text that it was asked before."""

    times: int = 0
    text: bytes = b""
    order: list[Any] = field(default_factory=list)
    formats: list[PyFormat] = field(default_factory=list)
    names: dict[tuple[int, ...], bytes] = field(default_factory=dict)  # by the values' types


def _numbered(query: str) -> tuple[str, dict[Any, PyFormat]]:
    """With $1 in place of %s or %(name)s, and where the value of each is found. A cursor has run it, and so has refused
    what is no such text.
    """
    places: dict[Any, PyFormat] = {}

    def number(place: re.Match[str]) -> str:
        name, kind = place.groups()
        if kind == "%":
            return "%"
        key = len(places) if name is None else name
        places.setdefault(key, PyFormat(kind))
        return f"${list(places).index(key) + 1}"

    return _PLACE.sub(number, query), places


def _in_order(order: list[Any], params: Any) -> Sequence[Any]:
    if params is None:
        return ()
    try:
        values = [params[place] for place in order]
    except (LookupError, TypeError) as error:
        raise errors.ProgrammingError("a parameter of this statement is missing") from error
    if len(params) > len(values) and not isinstance(params, Mapping):
        raise errors.ProgrammingError("there are more parameters than this statement has places")
    return values
