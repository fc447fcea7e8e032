"""What people say about a key: its name, what it may, how long it lives, and how long an old one goes on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django import forms
from django.utils import timezone

from tenants.fields import NameField
from tenants.roles import SCOPES, Action, may
from tenants.users.models import ApiKey, User

SCOPE_WORDS = {
    Action.CHAT: "ask for answers, and spend on them",
    Action.SUMMARIZE: "have texts summarized, and spend on it",
    Action.READ_BUDGET: "read the budget, and spend nothing",
}
NEVER = "never"
LIVES = [("30", "In 30 days"), ("90", "In 90 days"), ("365", "In a year"), (NEVER, "Never")]
# A key that is forgotten should end by itself; who means otherwise says so.
USUAL_LIFE = "90"
OVERLAPS = [("0", "At once"), ("1", "In an hour"), ("24", "In 24 hours"), ("168", "In 7 days")]


def life_of(choice: str) -> timedelta | None:
    return None if choice == NEVER else timedelta(days=int(choice))


class KeyForm(forms.Form):
    name = NameField(
        label="Name",
        max_length=100,
        widget=forms.TextInput(attrs={"placeholder": "Production server", "autocomplete": "off"}),
    )
    scopes = forms.MultipleChoiceField(
        label="What it may do",
        widget=forms.CheckboxSelectMultiple,
        error_messages={
            "required": "Choose at least one thing that the key may do.",
            "invalid_choice": "No key of yours can be made for this: choose among those shown.",
        },
    )
    life = forms.ChoiceField(label="Expires", choices=LIVES, initial=USUAL_LIFE)

    def __init__(self, data: Any = None, *, user: User, draft: Mapping[str, Any] | None = None) -> None:
        super().__init__(data, initial=dict(draft or {}))
        allowed = [scope for scope in SCOPES if may(user.role, scope)]
        scopes = self.fields["scopes"]
        assert isinstance(scopes, forms.MultipleChoiceField)
        scopes.choices = [(scope.value, SCOPE_WORDS.get(scope, "")) for scope in allowed]
        scopes.initial = [scope.value for scope in allowed]

    def facts(self) -> dict[str, Any]:
        """What was chosen, as keys.create_key takes it."""
        life = life_of(self.cleaned_data["life"])
        return {
            "name": self.cleaned_data["name"],
            "scopes": self.cleaned_data["scopes"],
            "expires_at": None if life is None else timezone.now() + life,
        }


class RotateForm(forms.Form):
    overlap = forms.ChoiceField(label="The old one ends", choices=OVERLAPS, initial="24")
    life = forms.ChoiceField(label="The new one expires", choices=LIVES)

    def __init__(self, data: Any = None, *, key: ApiKey) -> None:
        # Ids of its own, for each key's row has such a form.
        super().__init__(data, auto_id=f"rotate_{key.pk}_%s")
        self.fields["life"].initial = NEVER if key.expires_at is None else USUAL_LIFE

    def facts(self) -> dict[str, Any]:
        """What was chosen, as rotating.rotate_key takes it."""
        overlap = timedelta(hours=int(self.cleaned_data["overlap"]))
        return {"overlap": overlap, "life": life_of(self.cleaned_data["life"])}
