"""The library of prompts: one's own, and those that others share. Every form works without script."""

from __future__ import annotations

from django import forms
from django.contrib import messages
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from chat import prompts as library
from chat.models import SavedPrompt
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.fields import NameField, TextField
from tenants.http import ApiError, NotFound, TenantRequest
from tenants.roles import Action
from tenants.users import drafts
from tenants.users.access import needs
from tenants.users.models import User
from tenants.users.pages.answers import answer

KEPT = ("title", "text", "is_shared")


class SavedPromptForm(forms.Form):
    title = NameField(label="Title", max_length=library.TITLE_MAX)
    text = TextField(
        label="Prompt",
        max_length=library.TEXT_MAX,
        widget=forms.Textarea(attrs={"rows": 5, "dir": "auto"}),
        help_text="What is put into the message box. You can still change it there.",
    )
    is_shared = forms.BooleanField(label="Share it with everybody in this workspace", required=False)


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.CHAT, keeps=KEPT)
def prompts(request: TenantRequest) -> HttpResponse:
    form = SavedPromptForm(request.POST or None, initial=drafts.take(request))
    if request.method == "POST" and form.is_valid():
        try:
            library.keep(request.user, **form.cleaned_data)
        except library.TooManyPrompts as refusal:
            form.add_error(None, refusal.message)
        else:
            messages.success(request, "The prompt is kept.")
            return redirect("prompts")
    return _page(request, form)


def _page(request: TenantRequest, form: SavedPromptForm, refusal: ApiError | None = None) -> HttpResponse:
    context = {
        "form": form,
        "refusal": refusal,
        "own": library.own_of(request.user),
        "shared": library.shared_with(request.user)[: library.SHARED_SHOWN],
        "may_tidy": request.user.may(Action.EDIT_WORKSPACE),
    }
    return answer(request, "chat/prompts.html", context, form, refusal)


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.CHAT, keeps=KEPT)
def prompt(request: TenantRequest, pk: int) -> HttpResponse:
    """One's own, to be changed."""
    found = get_object_or_404(library.own_of(request.user), pk=pk)
    initial = {name: getattr(found, name) for name in KEPT}
    form = SavedPromptForm(request.POST or None, initial={**initial, **drafts.take(request)})
    if request.method == "POST" and form.is_valid():
        SavedPrompt.objects.filter(pk=found.pk).update(**form.cleaned_data)
        messages.success(request, "The prompt is changed.")
        return redirect("prompts")
    return answer(request, "chat/prompt.html", {"form": form, "prompt": found}, form)


@require_safe
@needs(Action.CHAT)
def text(request: TenantRequest, pk: int) -> HttpResponse:
    """For the script that puts it into the box without leaving the page."""
    found = get_object_or_404(library.seen_by(request.user), pk=pk)
    return HttpResponse(found.text, content_type="text/plain; charset=utf-8")


@require_POST
@needs(Action.CHAT)
def delete(request: TenantRequest, pk: int) -> HttpResponse:
    with transaction.atomic(durable=True):
        # Locked: its owner may stop sharing it just now, and then it is theirs alone.
        found = library.deletable_by(request.user).select_for_update().filter(pk=pk).first()
        if found is None:
            # Such as for the second click of a double click without script: the first one's answer is not shown.
            return _page(request, SavedPromptForm(), NotFound("This prompt is not here any more. Nothing was changed."))
        if found.owner_id != request.user.pk:
            owner = User.objects.get(pk=found.owner_id)
            record(Event.PROMPT_DELETED, request=request, target=found.title, owner=owner.email)
        found.delete()
    messages.success(request, "The prompt is deleted.")
    return redirect("prompts")
