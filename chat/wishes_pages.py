"""The pages on which a conversation, and the workspace, say how their models are asked."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_http_methods

from chat import wishing
from chat.composing import wishes_of
from chat.models import Conversation
from chat.picking import choices, default, workspace_of
from chat.wishes import SYSTEM_MAX, TEMPERATURE_MAX, Wishes, of_workspace
from tenants.fields import TextField
from tenants.http import TenantRequest
from tenants.roles import Action
from tenants.users import drafts
from tenants.users.access import needs
from tenants.users.pages.answers import answer


class WishesForm(forms.Form):
    model = forms.ChoiceField(
        label="Model",
        required=False,
        error_messages={"invalid_choice": "This model cannot be called here: choose one of those shown."},
    )
    system = TextField(
        label="System prompt",
        required=False,
        max_length=SYSTEM_MAX,
        widget=forms.Textarea(attrs={"rows": 4, "dir": "auto"}),
        help_text="What the model is told before every message. It is part of each prompt, and paid for with each.",
    )
    temperature = forms.DecimalField(
        label="Temperature",
        required=False,
        min_value=0,
        max_value=TEMPERATURE_MAX,
        max_digits=3,
        decimal_places=2,
        widget=forms.NumberInput(attrs={"step": "0.01", "inputmode": "decimal"}),
        help_text="From 0, nearly always the same answer, to 2, the freest. Not every model takes one.",
    )

    def __init__(self, request: TenantRequest, *, own: Wishes, blank: str, otherwise: Wishes) -> None:
        """`blank`: what an empty choice of a model means; `otherwise`: what holds where a field is empty."""
        initial = {"model": own.model, "system": own.system, "temperature": own.temperature}
        super().__init__(request.POST or None, initial={**initial, **drafts.take(request)})
        model = self.fields["model"]
        assert isinstance(model, forms.ChoiceField)
        offered = choices(request.tenant.allowed_models, own.model)
        model.choices = [("", f"{blank}: {otherwise.model}"), *((one.name, one.label) for one in offered)]
        temperature = "the model’s own" if otherwise.temperature is None else str(otherwise.temperature)
        self.fields["temperature"].widget.attrs["placeholder"] = temperature
        if otherwise.system:
            self.fields["system"].widget.attrs["placeholder"] = f"The workspace’s: {otherwise.system[:200]}"

    def clean_system(self) -> str:
        text: str = self.cleaned_data["system"]
        return text.replace("\r\n", "\n")

    def wishes(self) -> Wishes:
        return Wishes(**self.cleaned_data)


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.CHAT, keeps=("model", "system", "temperature"))
def conversation(request: TenantRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(Conversation, pk=pk, owner=request.user, deleted_at=None)
    otherwise = workspace_of(request.tenant)
    form = WishesForm(request, own=wishes_of(found), blank="As the workspace", otherwise=otherwise)
    if request.method == "POST" and form.is_valid():
        wishing.change_conversation(found, form.wishes())
        messages.success(request, "Saved. It holds from the next message on.")
        return redirect("conversation", pk=pk)
    context: dict[str, Any] = {"form": form, "conversation": found}
    return answer(request, "chat/conversation_settings.html", context, form)


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.EDIT_WORKSPACE, keeps=("model", "system", "temperature"))
def workspace(request: TenantRequest) -> HttpResponse:
    own = of_workspace(request.tenant.chat_settings)
    form = WishesForm(request, own=own, blank="The default", otherwise=default())
    if request.method == "POST" and form.is_valid():
        if wishing.change_workspace(request, form.wishes()):
            messages.success(request, "Saved. It holds from the next message on, but where a conversation has its own.")
        return redirect("workspace_chat")
    return answer(request, "chat/workspace_settings.html", {"form": form}, form)
