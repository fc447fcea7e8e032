"""Adding a file to a message, taking it away, reading it again and seeing it. With script in place, without it by the
page.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect
from django.template.loader import render_to_string
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header, quote_etag
from django.views.decorators.http import require_POST, require_safe

from chat import attachments
from chat.composing import holds
from chat.models import Attachment
from chat.unread import Unread
from chat.views import TYPED, meant, named_files, place_of, refused, typed
from chat.wishes import MODEL_MAX
from tenants.headers import POLICY
from tenants.http import ApiError, TenantRequest
from tenants.limits import Rate, take
from tenants.roles import Action
from tenants.users import drafts
from tenants.users.access import needs

# An image, opened by itself, runs nothing and loads nothing; a browser's own page around it has its style inline.
PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
ENDINGS: dict[str, tuple[str, ...]] = {
    Attachment.Kind.PDF: (".txt",),
    Attachment.Kind.PNG: (".png",),
    Attachment.Kind.JPEG: (".jpg", ".jpeg"),
}

# Reading a PDF can take seconds of a processor.
UPLOADS = Rate("files", burst=60, every=2.0, words="You have added a great many files just now.")


@require_POST
@needs(Action.CHAT, keeps=TYPED)
def add(request: TenantRequest) -> HttpResponse:
    try:
        take(UPLOADS, request.tenant.pk, request.user.pk)
        upload = request.FILES.get("file")
        if upload is None:
            raise Unread("Choose a file first.")
        model = _asked(request)
        attachment = attachments.add(request.user, upload, model=model, allowed=request.tenant.allowed_models)
    except ApiError as exc:
        if _is_script(request):
            return JsonResponse(exc.body(), status=exc.status)
        return refused(request, exc)
    return JsonResponse(_said_of(request, attachment, model)) if _is_script(request) else _back(request)


@require_POST
@needs(Action.CHAT, keeps=TYPED)
def remove(request: TenantRequest, pk: int) -> HttpResponse:
    """One that is sent stays with its question, and no longer goes with the message that is being written."""
    if not attachments.remove(request.user, pk) and (_is_script(request) or pk not in named_files(request)):
        raise Http404
    return JsonResponse({"id": pk}) if _is_script(request) else _back(request, without=pk)


@require_safe
@needs(Action.READ_CHATS)
def download(request: TenantRequest, pk: int) -> HttpResponseBase:
    """The words that the model was given. Never shown by the browser: they are anybody's."""
    found = attachments.own(request.user, pk)
    if found is None:
        raise Http404
    kept = bytes(found.image or b"") if found.is_image else found.text
    response = HttpResponse(kept, content_type="application/octet-stream")
    response["Content-Disposition"] = content_disposition_header(True, _name_of(found)) or "attachment"
    response["X-Content-Type-Options"] = "nosniff"
    return response


@require_safe
@needs(Action.READ_CHATS)
def picture(request: TenantRequest, pk: int) -> HttpResponseBase:
    """An image in a page, for who may read its conversation. A browser may keep it, and asks each time whether it still
    may show it.
    """
    found = attachments.image_for(request.user, pk)
    if found is None:
        raise Http404
    etag = quote_etag(f"image-{found.pk}")
    response = HttpResponse(bytes(found.image or b""), content_type=f"image/{found.kind}")
    response["Content-Disposition"] = content_disposition_header(False, _name_of(found)) or "inline"
    response["X-Content-Type-Options"] = "nosniff"
    response[POLICY] = PICTURE_POLICY
    response["Cross-Origin-Resource-Policy"] = "same-origin"
    response["Cache-Control"] = "private, no-cache"
    response["ETag"] = etag
    return get_conditional_response(request, etag=etag, response=response) or response


def _name_of(attachment: Attachment) -> str:
    """What is downloaded is what the model was given, which may be of another kind than what came."""
    endings = ENDINGS.get(attachment.kind, ())
    if not endings or PurePosixPath(attachment.name).suffix.lower() in endings:
        return attachment.name
    return attachment.name + endings[0]


def _asked(request: TenantRequest) -> str:
    """The model that the message is for, as its form has it."""
    return request.POST.get("model", "")[:MODEL_MAX] or holds(request, meant(request)).model


def _said_of(request: TenantRequest, attachment: Attachment, model: str) -> dict[str, Any]:
    """`html`: its row above the box, as the page writes it."""
    tokens = attachments.tokens_for(attachment, model)
    return {
        "id": attachment.pk,
        "name": attachment.name,
        "kind": attachment.kind,
        "tokens": tokens,
        "bytes": attachment.bytes,
        "price": attachments.price_of(tokens, model),
        "html": render_to_string("chat/partials/file.html", {"file": attachment, "chosen_model": model}, request),
    }


def _back(request: TenantRequest, *, without: int | None = None) -> HttpResponse:
    """To the page, with what was typed in its box, and the files of a question that is edited."""
    files = [number for number in named_files(request) if number != without]
    drafts.keep_typed(request, typed(request), **({"files": files} if files else {}))
    return redirect(place_of(request))


def _is_script(request: HttpRequest) -> bool:
    return request.headers.get("Accept") == "application/json"
