"""The same app without its bugs."""

from __future__ import annotations

import json
import logging
from pathlib import Path, PurePath

from django.conf import settings
from django.core.cache import cache
from django.core.mail import send_mail
from django.db import connection
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_POST
from procrastinate.contrib.django import app

from billing.engine import fetch
from billing.models import TopUp
from chat.models import Conversation
from tenants.context import current_tenant
from tenants.http import PlaneRequest
from tenants.users.auth import caller
from tenants.users.models import User

logger = logging.getLogger(__name__)


def cached_titles(request: HttpRequest) -> HttpResponse:
    caller(request)  # type: ignore[arg-type]
    titles = cache.get_or_set("titles", lambda: list(Conversation.objects.values_list("title", flat=True)))
    return JsonResponse({"titles": titles})


def raw_report(request: HttpRequest) -> HttpResponse:
    caller(request)  # type: ignore[arg-type]
    with connection.cursor() as cursor:
        cursor.execute("SELECT text FROM chat_message")
        return JsonResponse({"texts": [text for (text,) in cursor.fetchall()]})


def media(request: HttpRequest, name: str) -> HttpResponse | FileResponse:
    caller(request)  # type: ignore[arg-type]
    tenant, place = current_tenant(), PurePath(name)
    file = Path(settings.MEDIA_ROOT) / place
    # Of the folder that bears the workspace's number.
    if tenant is None or ".." in place.parts or place.parent.name != str(tenant.pk) or not file.is_file():
        raise Http404
    return FileResponse(file.open("rb"))


@app.task
def write_to_members(*, subject: str) -> None:
    send_mail(subject, "Hello", "us@example.com", list(User.objects.values_list("email", flat=True)))


def enqueue(request: HttpRequest) -> HttpResponse:
    caller(request)  # type: ignore[arg-type]
    write_to_members.defer(subject="News")
    return HttpResponse(status=202)


def top_up(request: HttpRequest, pk: int) -> HttpResponse:
    caller(request)  # type: ignore[arg-type]
    found = TopUp.objects.filter(pk=pk, account__tenant=current_tenant()).first()
    if found is None:
        raise Http404
    return JsonResponse({"key": found.key, "amount": found.amount})


def rename(request: HttpRequest) -> HttpResponse:
    caller(request)  # type: ignore[arg-type]
    Conversation.objects.update(title="renamed")
    return HttpResponse(status=204)


def logged(request: HttpRequest) -> HttpResponse:
    caller(request)  # type: ignore[arg-type]
    logger.info("Top-ups: %d", TopUp.objects.count())
    return HttpResponse(status=204)


async def stream(request: PlaneRequest) -> StreamingHttpResponse:
    rows = await fetch(f'SELECT email FROM "{request.tenant.schema_name}".users_user', ())  # noqa: S608

    async def emails():
        for (email,) in rows:
            yield f"data: {email}\n\n"

    return StreamingHttpResponse(emails(), content_type="text/event-stream")


@require_POST
def claim(request: HttpRequest) -> HttpResponse:
    """What a unique constraint makes of a form: it works once."""
    member = caller(request)  # type: ignore[arg-type]
    _, is_new = Conversation.objects.get_or_create(title=json.loads(request.body)["title"], owner_id=member.pk)
    return HttpResponse(status=201 if is_new else 409)


def broken(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"email": caller(request).email})  # type: ignore[arg-type]


urlpatterns = [
    path("api/titles/", cached_titles),
    path("api/report/", raw_report),
    path("api/files/<path:name>/", media),
    path("api/letters/", enqueue),
    path("api/top-ups/<int:pk>/", top_up),
    path("api/rename/", rename),
    path("api/logged/", logged),
    path("api/broken/", broken),
    path("api/claim/", claim),
]
plane_urlpatterns = [path("api/chat/emails/", stream)]
