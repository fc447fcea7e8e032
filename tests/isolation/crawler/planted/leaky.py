"""An app whose every view has a bug."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from django.conf import settings
from django.core.cache import caches
from django.core.mail import send_mail
from django.db import connection
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from procrastinate.contrib.django import app

from billing.engine import fetch
from billing.models import TopUp
from chat.models import Conversation
from tenants.http import PlaneRequest
from tenants.jobs import without_tenant
from tenants.models import Tenant
from tenants.users.auth import caller
from tenants.users.models import User

logger = logging.getLogger(__name__)


def cached_titles(request: HttpRequest) -> HttpResponse:
    """An unscoped cache key: the cache has no key function of django-tenants', and the key names no tenant."""
    caller(request)  # type: ignore[arg-type]
    titles = caches["shared"].get_or_set("titles", lambda: list(Conversation.objects.values_list("title", flat=True)))
    return JsonResponse({"titles": titles})


class Report:
    """Raw SQL with a schema: put together once, for whoever came first."""

    sql = ""


def raw_report(request: HttpRequest) -> HttpResponse:
    caller(request)  # type: ignore[arg-type]
    Report.sql = Report.sql or f'SELECT text FROM "{connection.schema_name}".chat_message'  # type: ignore[attr-defined]  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(Report.sql)
        return JsonResponse({"texts": [text for (text,) in cursor.fetchall()]})


def media(request: HttpRequest, name: str) -> HttpResponse | FileResponse:
    """A media path: whoever knows the name of a file gets it."""
    caller(request)  # type: ignore[arg-type]
    file = Path(settings.MEDIA_ROOT) / name
    if not file.is_file():
        raise Http404
    return FileResponse(file.open("rb"))


@app.task
@without_tenant
def write_to_all(*, subject: str) -> None:
    for tenant in Tenant.objects.filter(slug__startswith="crawled"):
        with connection.cursor() as cursor:
            cursor.execute(f'SELECT email FROM "{tenant.schema_name}".users_user')  # noqa: S608
            send_mail(subject, "Hello", "us@example.com", [email for (email,) in cursor.fetchall()])


def enqueue(request: HttpRequest) -> HttpResponse:
    """A job without its tenant, which therefore works for everybody."""
    caller(request)  # type: ignore[arg-type]
    write_to_all.defer(subject="News")
    return HttpResponse(status=202)


def top_up(request: HttpRequest, pk: int) -> HttpResponse:
    """A view that trusts an id: top-ups lie in the public schema, and any member may ask for any of them."""
    caller(request)  # type: ignore[arg-type]
    found = TopUp.objects.filter(pk=pk).first()
    if found is None:
        raise Http404
    return JsonResponse({"key": found.key, "amount": found.amount})


def rename(request: HttpRequest) -> HttpResponse:
    """A write across: the form says whose conversation it is."""
    caller(request)  # type: ignore[arg-type]
    tenant = Tenant.objects.get(slug=json.loads(request.body)["workspace"])
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE \"{tenant.schema_name}\".chat_conversation SET title = 'renamed'")  # noqa: S608
    return HttpResponse(status=204)


def logged(request: HttpRequest) -> HttpResponse:
    """A log line with the words of all."""
    caller(request)  # type: ignore[arg-type]
    logger.info("Top-ups: %s", list(TopUp.objects.values_list("key", flat=True)))
    return HttpResponse(status=204)


async def stream(request: PlaneRequest) -> StreamingHttpResponse:
    """A stream of the plane, whose raw SQL takes the schema from the address."""
    tenant = request.GET["workspace"]
    schema = (await fetch("SELECT schema_name FROM public.tenants_tenant WHERE slug = %s", (tenant,)))[0][0]
    rows = await fetch(f'SELECT email FROM "{schema}".users_user', ())  # noqa: S608

    async def emails():
        for (email,) in rows:
            yield f"data: {email}\n\n"

    return StreamingHttpResponse(emails(), content_type="text/event-stream")


def broken(request: HttpRequest) -> HttpResponse:
    """It cannot be asked by nobody."""
    return JsonResponse({"email": User.objects.get(pk=request.user.pk or 0).email})


urlpatterns = [
    path("api/titles/", cached_titles),
    path("api/report/", raw_report),
    path("api/files/<path:name>/", media),
    path("api/letters/", enqueue),
    path("api/top-ups/<int:pk>/", top_up),
    path("api/rename/", rename),
    path("api/logged/", logged),
    path("api/broken/", broken),
]
plane_urlpatterns = [path("api/chat/emails/", stream)]
