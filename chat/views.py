"""The chat page. With script the answer streams through the API; without it this page does the same, whole."""

from __future__ import annotations

from django.conf import settings
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe

from billing import confirming
from billing.ledgers import figures_for
from billing.models import Hold
from billing.periods import running
from chat import services
from chat.forms import PromptForm
from chat.models import Conversation
from tenants.http import ApiError, TenantRequest
from tenants.roles import Action
from tenants.users import drafts
from tenants.users.access import needs

SHOWN_CONVERSATIONS = 50


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.READ_CHATS, to_send=Action.CHAT, keeps=("prompt", "conversation_id", "max_tokens"))
def home(request: TenantRequest) -> HttpResponse:
    if request.method == "POST":
        return _ask(request)
    return _page(request, None, PromptForm(initial=drafts.take(request)))


def _ask(request: TenantRequest) -> HttpResponse:
    form = PromptForm(request.POST)
    if not form.is_valid():
        return _page(request, _named(request, form), form, status=400)
    try:
        conversation_id = services.reply_at_once(_buyer(request), **form.cleaned_data)
    except ApiError as exc:
        return _page(request, _named(request, form), form, refusal=exc, status=exc.status)
    return redirect("conversation", pk=conversation_id)


def _buyer(request: TenantRequest) -> services.Buyer:
    tenant = request.tenant
    return services.Buyer(tenant.pk, tenant.slug, tenant.schema_name, user_id=request.user.pk)


def _named(request: TenantRequest, form: PromptForm) -> Conversation | None:
    """The conversation that a refused message was meant for, so that the page keeps its place."""
    pk = form.cleaned_data.get("conversation_id") or 0
    return Conversation.objects.filter(pk=pk, owner=request.user).first()


@require_safe
@needs(Action.READ_CHATS)
def conversation(request: TenantRequest, pk: int) -> HttpResponse:
    found = Conversation.objects.filter(pk=pk, owner=request.user).first()
    if found is None and not _is_settling(request):
        raise Http404
    return _page(
        request, found, PromptForm(initial={**drafts.take(request), "conversation_id": pk}), is_settling=found is None
    )


def _is_settling(request: TenantRequest) -> bool:
    """Whether a call of this person is still being settled. A new conversation's row is written with its line, so the
    page that its first message leads to may come before it.
    """
    return Hold.objects.filter(account__tenant_id=request.tenant.pk, user_id=request.user.pk).exists()


def _page(
    request: TenantRequest,
    shown: Conversation | None,
    form: PromptForm,
    *,
    refusal: ApiError | None = None,
    is_settling: bool = False,
    status: int = 200,
) -> HttpResponse:
    budget = figures_for(request.tenant)
    context = {
        "conversations": Conversation.objects.filter(owner=request.user).order_by("-pk")[:SHOWN_CONVERSATIONS],
        "conversation": shown,
        "chat_messages": shown.messages.order_by("pk") if shown else [],
        "form": form,
        "refusal": refusal,
        "settling": is_settling,
        "budget": budget,
        # With an allowance there is something allocated.
        "confirm_first": confirming.notice(request) if budget and not budget.allocated else "",
        "period": running(request.tenant, now=timezone.now()),
        "model_name": settings.LLM_MODEL,
    }
    return render(request, "chat/home.html", context, status=status)
