"""The planted app's cases, as an app has them. Its views take any method; one that shows the bug is enough."""

from __future__ import annotations

from billing.models import TopUp
from tests.isolation.crawler.cases import Case

GET, POST = ("GET",), ("POST",)

CASES = {
    "api/titles/": Case(methods=GET),
    "api/report/": Case(methods=GET),
    "api/files/<path:name>/": Case(methods=GET, args=lambda room: {"name": room.file}),
    "api/letters/": Case(methods=POST),
    "api/top-ups/<int:pk>/": Case(methods=GET, args=lambda room: {"pk": room.row(TopUp).pk}),
    "api/rename/": Case(methods=POST, bodies={"POST": [lambda room: {"workspace": room.slug}]}),
    "api/logged/": Case(methods=POST),
    "api/broken/": Case(methods=GET),
    "api/claim/": Case(bodies={"POST": [lambda room: {"title": "mine"}]}),
    "api/chat/emails/": Case(methods=GET, query=lambda room: {"workspace": room.slug}),
}
