"""What the chat page shows around a conversation for its menu: what it is called, what can be downloaded, what was
deleted just now.

Reads rows and changes none: that is chat.manage.
"""

from __future__ import annotations

from typing import Any

from chat.forms import TitleForm
from chat.models import Conversation
from tenants.fields import focus_on_error
from tenants.http import TenantRequest
from tenants.spelling import number_in

# What is added to the address of a download, and what it is then.
EXPORTS = (("", "What is shown"), ("&all=yes", "All versions"))


def about(request: TenantRequest, shown: Conversation | None, renaming: TitleForm | None) -> dict[str, Any]:
    """`renaming`: a form that has to be mended, with what was typed."""
    if renaming is None:
        renaming = TitleForm(initial={"title": shown.title if shown else ""})
    focus_on_error(renaming)
    return {"renaming": renaming, "exports": EXPORTS, "deleted": _deleted(request)}


def _deleted(request: TenantRequest) -> Conversation | None:
    """The one that `?deleted=` names, while it can be taken back."""
    pk = number_in(request.GET.get("deleted", ""))
    return (
        None if pk is None else Conversation.objects.filter(pk=pk, owner=request.user, deleted_at__isnull=False).first()
    )
