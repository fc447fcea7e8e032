"""The chat page. With script the answer streams through the API; without it this page does the same, whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from billing import confirming
from billing.ledgers import figures_for
from billing.models import Hold
from billing.periods import running
from chat import attachments, composing, editing, services
from chat.attached import MOST_FILES
from chat.branches import Shown, Tree, in_line
from chat.errors import ConversationBusy
from chat.examples import EXAMPLES
from chat.forms import MessageForm, PromptForm, TitleForm
from chat.listing import listing
from chat.menu import about
from chat.models import Conversation, Message
from chat.plainly import note_plain
from chat.standing import Standing
from chat.trimming import left_out_of
from chat.turns import busy_key
from tenants.http import ApiError, NotFound, TenantRequest
from tenants.resolve import Asker
from tenants.roles import Action
from tenants.spelling import number_in
from tenants.users import drafts
from tenants.users.access import needs

# A link can fill the box, and no more than that: its text is cut here, escaped, and sent by nobody but its reader.
LINKED_PROMPT_MAX = 2_000
TYPED = ("prompt", "conversation_id", "parent_id", "max_tokens", "model")


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.READ_CHATS, to_send=Action.CHAT, keeps=TYPED)
def home(request: TenantRequest) -> HttpResponse:
    if request.method == "POST":
        return _ask(request)
    linked = {"prompt": request.GET.get("prompt", "")[:LINKED_PROMPT_MAX]}
    return _page(
        request, None, PromptForm(initial={**linked, **composing.linked_prompt(request), **drafts.take(request)})
    )


def _ask(request: TenantRequest) -> HttpResponse:
    form = PromptForm(request.POST)
    if not form.is_valid():
        return _page(request, _named(request, form), form, status=400)
    return _answered(request, form, _named, **form.cleaned_data)


@require_POST
@needs(Action.CHAT)
def again(request: TenantRequest, pk: int) -> HttpResponse:
    """Another answer to an earlier question."""
    return _bought_of(request, pk, "again_id")


@require_POST
@needs(Action.CHAT)
def go_on(request: TenantRequest, pk: int) -> HttpResponse:
    """The rest of an answer that was cut."""
    return _bought_of(request, pk, "continue_id")


@require_POST
@needs(Action.CHAT)
def delete_turn(request: TenantRequest, pk: int) -> HttpResponse:
    form = MessageForm(request.POST)
    if not form.is_valid():
        raise Http404
    try:
        editing.delete_turn(request.tenant.schema_name, request.user.pk, pk, form.cleaned_data["message_id"])
    except (ConversationBusy, NotFound) as exc:
        if (found := _own(request, pk)) is None:
            raise
        return _page(request, found, _empty(pk), refusal=exc, status=exc.status)
    messages.success(request, "Deleted. What it cost stays in the usage.")
    return redirect("conversation", pk=pk)


def _bought_of(request: TenantRequest, pk: int, what: str) -> HttpResponse:
    form = MessageForm(request.POST)
    if _own(request, pk) is None or not form.is_valid():
        raise Http404
    return _answered(
        request,
        _empty(pk),
        lambda request, _: _own(request, pk),
        conversation_id=pk,
        **{what: form.cleaned_data["message_id"]},
    )


def _answered(
    request: TenantRequest,
    form: PromptForm,
    named: Callable[[TenantRequest, PromptForm], Conversation | None],
    **asked: Any,
) -> HttpResponse:
    """To the page with the answer; or the page as it was, with what refused it."""
    try:
        # Each page has a token of its own, though all of a browser's mean the same.
        page = request.POST.get("csrfmiddlewaretoken", "")
        conversation_id = services.reply_at_once(buyer_of(request), page=page, **asked)
    except ApiError as exc:
        return _page(request, named(request, form), form, refusal=exc, status=exc.status)
    return redirect("conversation", pk=conversation_id)


def buyer_of(request: TenantRequest) -> services.Buyer:
    """Who pays for what a page's form buys."""
    tenant = request.tenant
    return services.Buyer(
        tenant.pk,
        tenant.slug,
        tenant.schema_name,
        user_id=request.user.pk,
        chat_settings=tenant.chat_settings,
        standing=Standing(request, Asker(tenant, request.user)),
    )


def typed(request: TenantRequest) -> dict[str, str]:
    return drafts.typed(request, TYPED)


def named_files(request: TenantRequest) -> list[int]:
    """Those that a form of the composer goes with."""
    named = (number_in(text) for text in request.POST.getlist("files")[:MOST_FILES])
    return [number for number in named if number is not None]


def place_of(request: TenantRequest) -> str:
    """The page from which a form of the composer was sent."""
    pk = number_in(request.POST.get("conversation_id", ""))
    return "/" if pk is None else reverse("conversation", args=[pk])


def refused(request: TenantRequest, exc: ApiError) -> HttpResponse:
    """The page of the composer with what was typed in it, and with why something else of it was not taken."""
    return _page(request, meant(request), PromptForm(initial=typed(request)), refusal=exc, status=exc.status)


def meant(request: TenantRequest) -> Conversation | None:
    """The conversation that a form of the composer is for."""
    pk = number_in(request.POST.get("conversation_id", ""))
    return None if pk is None else _own(request, pk)


def _empty(pk: int) -> PromptForm:
    return PromptForm(initial={"conversation_id": pk})


def _own(request: TenantRequest, pk: int) -> Conversation | None:
    return Conversation.objects.filter(pk=pk, owner=request.user, deleted_at=None).first()


def _named(request: TenantRequest, form: PromptForm) -> Conversation | None:
    """The conversation that a refused message was meant for, so that the page keeps its place."""
    return _own(request, form.cleaned_data.get("conversation_id") or 0)


@require_safe
@needs(Action.READ_CHATS)
def conversation(request: TenantRequest, pk: int) -> HttpResponse:
    """`?at=` shows the branch of that message, `?edit=` what stands before a question, with its words in the box."""
    found = _own(request, pk)
    if found is None and not _is_settling(request):
        raise Http404
    initial = {**composing.linked_prompt(request), **drafts.take(request), "conversation_id": pk}
    return _page(request, found, PromptForm(initial=initial), is_settling=found is None)


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
    renaming: TitleForm | None = None,
    is_settling: bool = False,
    status: int = 200,
) -> HttpResponse:
    budget = figures_for(request.tenant)
    turns, edited = _turns(request, shown, form)
    # Which may be as somebody wrote it.
    pk = shown.pk if shown else number_in(str(form.initial.get("conversation_id") or ""))
    attachments.put_beside([*(turn.message for turn in turns), *([edited] if edited else [])])
    named = [file.pk for file in edited.files] if edited else named_files(request) or form.initial.get("files", [])
    note_plain(turn.message for turn in reversed(turns))
    context = {
        "listing": listing(request, shown),
        "conversation": shown,
        **about(request, shown, renaming),
        "turns": turns,
        "edited": edited,
        "form": form,
        "files": attachments.in_box(request.user, shown, named),
        "file_bytes": settings.CHAT_FILE_BYTES,
        "examples": EXAMPLES,
        "refusal": refusal,
        "settling": is_settling,
        "under_way": _under_way(request, pk),
        "left_out": left_out_of(shown, turns, composing.holds(request, shown).model),
        "budget": budget,
        # With an allowance there is something allocated.
        "confirm_first": confirming.notice(request) if budget and not budget.allocated else "",
        "period": running(request.tenant, now=timezone.now()),
        "top_up_url": settings.TOP_UP_URL,
        **composing.options(request, shown, form),
    }
    return render(request, "chat/home.html", context, status=status)


def _under_way(request: TenantRequest, pk: int | None) -> dict[str, Any] | None:
    """The call that answers in this conversation just now, or on the page of none the newest that makes a new one."""
    if pk is None and not request.tenant.chat_settings.get("goes_on"):
        return None  # it has stopped with its reader
    own = Hold.objects.filter(account__tenant_id=request.tenant.pk, user_id=request.user.pk)
    named = busy_key(request.tenant.schema_name)
    held = own.filter(busy_key=f"{named}{pk}") if pk else own.filter(busy_key__startswith=named).order_by("-created_at")
    found = held.values_list("pk", "busy_key").first()
    if found is None:
        return None
    conversation_id = int((found[1] or "").rpartition("-")[2])
    if pk is None and Conversation.objects.filter(pk=conversation_id).exists():
        return None  # it is in the list, and its own page says so
    return {"call": str(found[0]), "conversation_id": conversation_id}


def page_of(
    request: TenantRequest,
    shown: Conversation,
    *,
    refusal: ApiError | None = None,
    renaming: TitleForm | None = None,
    status: int,
) -> HttpResponse:
    """The page of a conversation once more, with what was wrong with a change of it."""
    return _page(request, shown, _empty(shown.pk), refusal=refusal, renaming=renaming, status=status)


def _turns(
    request: TenantRequest, shown: Conversation | None, form: PromptForm
) -> tuple[list[Shown[Message]], Message | None]:
    """The branch that the address names, and the question that is being edited; the form is told where it asks."""
    if shown is None:
        return [], None
    written = list(shown.messages.all())
    if in_line(written):
        editing.link(shown.pk)
        shown.refresh_from_db()
        written = list(shown.messages.all())
    tree: Tree[Message] = Tree(written)
    edited = tree.get(number_in(request.GET.get("edit", "")))
    if edited is not None and edited.role == Message.Role.USER:
        form.initial = {"prompt": edited.text, **form.initial, "parent_id": edited.parent_id or 0}
        return tree.branch(edited.parent_id), edited
    at = number_in(request.GET.get("at", ""))
    if at is None or at not in tree:
        return tree.branch(shown.head_id or tree.newest_under(None)), None
    last = tree.newest_under(at)
    if last != shown.head_id:
        form.initial["parent_id"] = last
    return tree.branch(last), None
