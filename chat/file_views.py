"""Adding a file to a message, taking it away, and reading it again. With script in place, without it by the page."""

from __future__ import annotations

from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect
from django.template.loader import render_to_string
from django.utils.http import content_disposition_header
from django.views.decorators.http import require_POST, require_safe

from chat import attachments
from chat.file_text import Unread
from chat.models import Attachment
from chat.picking import workspace_of
from chat.views import place_of, refused, typed
from tenants.http import ApiError, TenantRequest
from tenants.limits import Rate, take
from tenants.roles import Action
from tenants.users import drafts
from tenants.users.access import needs

# Reading a PDF can take seconds of a processor.
UPLOADS = Rate("files", burst=60, every=2.0, words="You have added a great many files just now.")


@require_POST
@needs(Action.CHAT)
def add(request: TenantRequest) -> HttpResponse:
    try:
        take(UPLOADS, request.tenant.pk, request.user.pk)
        upload = request.FILES.get("file")
        if upload is None:
            raise Unread("Choose a file first.")
        attachment = attachments.add(request.user, upload)
    except ApiError as exc:
        if _is_script(request):
            return JsonResponse(exc.body(), status=exc.status)
        return refused(request, exc)
    return JsonResponse(_said_of(request, attachment)) if _is_script(request) else _back(request)


@require_POST
@needs(Action.CHAT)
def remove(request: TenantRequest, pk: int) -> HttpResponse:
    if not attachments.remove(request.user, pk):
        raise Http404
    return JsonResponse({"id": pk}) if _is_script(request) else _back(request)


@require_safe
@needs(Action.READ_CHATS)
def download(request: TenantRequest, pk: int) -> HttpResponseBase:
    """The words that the model was given. Never shown by the browser: they are anybody's."""
    found = attachments.own(request.user, pk)
    if found is None:
        raise Http404
    name = f"{found.name}.txt" if found.kind == Attachment.Kind.PDF else found.name
    response = HttpResponse(found.text, content_type="application/octet-stream")
    response["Content-Disposition"] = content_disposition_header(True, name) or "attachment"
    response["X-Content-Type-Options"] = "nosniff"
    return response


def _said_of(request: TenantRequest, attachment: Attachment) -> dict[str, Any]:
    """`html`: its row above the box, as the page writes it. Which conversation it is for is not known yet."""
    wishes = workspace_of(request.tenant)
    return {
        "id": attachment.pk,
        "name": attachment.name,
        "kind": attachment.kind,
        "tokens": attachment.tokens,
        "bytes": attachment.bytes,
        "price": attachments.price_of(attachment, wishes.model),
        "html": render_to_string("chat/partials/file.html", {"file": attachment, "wishes": wishes}, request),
    }


def _back(request: TenantRequest) -> HttpResponse:
    """To the page, with what was typed in its box."""
    drafts.keep_typed(request, typed(request))
    return redirect(place_of(request))


def _is_script(request: HttpRequest) -> bool:
    return request.headers.get("Accept") == "application/json"
