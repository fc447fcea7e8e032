"""Finding conversations by words that were said in them, or by their titles. Full text of Postgres, by its index.

Owns the statement. It finds a member's own conversations and those that are shared with the workspace, and nothing that
was deleted. Must not run for longer than SECONDS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from django.db import OperationalError, connection, transaction
from psycopg.errors import QueryCanceled

from chat.models import JOINING, SEARCHED

MAX_QUERY = 200
# A word that stands in most of a workspace's messages is found in all of them before the newest are known.
SECONDS = 2
# Of a message's beginning is looked for the line that matches; reading on would cost more than it tells.
LOOKED_THROUGH = 10_000

_ENDS_IN_A_WORD = re.compile(r"(?:^|\s)(?!or$)\w+$", re.IGNORECASE)
# As `words_of` takes words apart. Before a word, a hyphen says that it must not be there.
_JOINING = re.compile(rf"(?<!^)(?<![\s\"])-|[{JOINING.replace('-', '')}]")


class TooMuch(Exception):
    """The search was ended before its end."""


@dataclass(frozen=True, slots=True)
class Found:
    """A conversation. `line` and `message_id` say where its words are; without them its title matches."""

    pk: int
    title: str
    owner: str
    is_own: bool
    message_id: int | None
    line: str


def _words_of(text: str) -> str:
    return f"translate({text}, '{JOINING}', '{' ' * len(JOINING)}')"


_WORDS = _words_of(f"left(message.text, {LOOKED_THROUGH})")
# As the index `message_words` has it.
_INDEXED = f"to_tsvector('simple'::regconfig, coalesce({_words_of(f'left(message.text, {SEARCHED})')}, ''))"

# Between the words of a phrase, as Postgres writes a query down.
_NEXT_TO = "' <(-|[0-9]+)> '"

# A query's last word is the beginning of one: its text ends in that word, quoted. Without a word in it, a query matches
# nothing.
# The index knows words and not where they stand: for a phrase it would read every message that has its words, other
# people's too, and the time that takes would tell what they write. So it is asked for the words (`loose`, in which what
# is left out is not looked at, and nothing else in it is everything), and only what the reader may see is read. A line
# is found in the words, and then shown as it was written.
SEARCH = f"""
WITH typed AS (SELECT websearch_to_tsquery('simple', %(query)s) AS query),
meant AS (
    SELECT CASE WHEN %(is_beginning)s AND query::text LIKE '%%''' THEN (query::text || ':*')::tsquery ELSE query END
        AS query
    FROM typed
),
asked AS (
    SELECT query, query::text ~ {_NEXT_TO} AS has_phrase,
        CASE WHEN query::text ~ {_NEXT_TO}
            THEN coalesce(regexp_replace(nullif(querytree(query), 'T'), {_NEXT_TO}, ' & ', 'g'), '!''-''')::tsquery
            ELSE query END AS loose
    FROM meant
),
visible AS (
    SELECT id, title, owner_id, active_at FROM chat_conversation
    WHERE (owner_id = %(member)s OR shared_at IS NOT NULL) AND deleted_at IS NULL
),
-- Each is materialized, so that nothing is read of a message before it is known whose it is.
indexed AS MATERIALIZED (
    SELECT message.id, message.conversation_id FROM chat_message AS message
    WHERE {_INDEXED} @@ (SELECT loose FROM asked)
),
hit AS MATERIALIZED (
    SELECT indexed.id, indexed.conversation_id FROM indexed JOIN visible ON visible.id = indexed.conversation_id
),
said AS (
    SELECT conversation_id, max(id) AS message_id FROM hit
    WHERE NOT (SELECT has_phrase FROM asked)
        OR (SELECT {_INDEXED} @@ (SELECT query FROM asked) FROM chat_message AS message WHERE message.id = hit.id)
    GROUP BY conversation_id
),
found AS (
    SELECT visible.id, visible.title, visible.owner_id, visible.active_at, said.message_id
    FROM visible LEFT JOIN said ON said.conversation_id = visible.id
    WHERE said.message_id IS NOT NULL
        OR to_tsvector('simple'::regconfig, {_words_of("visible.title")}) @@ (SELECT query FROM asked)
    ORDER BY visible.active_at DESC, visible.id DESC
    LIMIT %(most)s
)
SELECT found.id, found.title, owner.email, found.owner_id = %(member)s, found.message_id,
    coalesce(ts_headline('simple', substr(message.text, strpos({_WORDS}, line), length(line)),
        (SELECT query FROM asked), 'StartSel="", StopSel="", MinWords=100, MaxWords=200'), '')
FROM found
JOIN users_user AS owner ON owner.id = found.owner_id
LEFT JOIN chat_message AS message ON message.id = found.message_id
LEFT JOIN LATERAL ts_headline('simple', {_WORDS}, (SELECT query FROM asked),
    'StartSel="", StopSel="", MinWords=10, MaxWords=25') AS line ON true
ORDER BY found.active_at DESC, found.id DESC
"""  # noqa: S608  # only texts and numbers of ours are put in


def search(member_id: int, query: str, *, most: int) -> list[Found]:
    """The newest first. `query` is written as for web searches: "a phrase", or, -without. Raises TooMuch."""
    query = " ".join(_JOINING.sub(" ", query).split())
    params: dict[str, str | int | bool] = {
        "query": query,
        "is_beginning": _ENDS_IN_A_WORD.search(query) is not None and query.count('"') % 2 == 0,
        "member": member_id,
        "most": most,
    }
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = '{SECONDS}s'")
            cursor.execute(SEARCH, params)
            return [
                Found(pk, title, owner, is_own, message_id, " ".join(line.split()))
                for pk, title, owner, is_own, message_id, line in cursor.fetchall()
            ]
    except OperationalError as exc:
        if isinstance(exc.__cause__, QueryCanceled):
            raise TooMuch from exc
        raise
