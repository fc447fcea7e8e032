"""Which models a workspace, or a key of it, may call: all, or those that are ticked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from django import forms
from django.conf import settings
from django.utils.module_loading import import_string

ALL, SOME = "all", "some"


def callable_models() -> list[str]:
    """What can be called here. Which that is, a room further up knows."""
    listed: Callable[[], list[str]] = import_string(settings.CALLABLE_MODELS)
    return listed()


def offered_to_keys(allowed: Collection[str] | None) -> list[str]:
    """What a key can be allowed: no more than its workspace is, and what it is allowed otherwise says nothing."""
    return [model for model in callable_models() if allowed is None or model in allowed]


class ModelsForm(forms.Form):
    which = forms.ChoiceField(label="Models", choices=[(ALL, ""), (SOME, "")], widget=forms.RadioSelect, required=False)
    models = forms.MultipleChoiceField(
        label="Which models",
        widget=forms.CheckboxSelectMultiple,
        required=False,
        error_messages={"invalid_choice": "A model that was ticked cannot be called here: choose among those shown."},
    )

    def __init__(
        self,
        data: Any = None,
        *,
        offered: Sequence[str],
        allowed: Collection[str] | None = None,
        prefix: str = "models",
        draft: Mapping[str, Any] | None = None,
    ) -> None:
        """`allowed`: what it is now, also what can no longer be called: to save a change must not lose it."""
        super().__init__(data, auto_id=f"{prefix}_%s")
        gone = [model for model in allowed or () if model not in offered]
        field = self.fields["models"]
        assert isinstance(field, forms.MultipleChoiceField)
        field.choices = [*((model, "") for model in offered), *((model, "not called here now") for model in gone)]
        self.initial = {"which": ALL if allowed is None else SOME, "models": list(allowed or ()), **(draft or {})}
        self.is_worth_showing = len(offered) > 1 or allowed is not None

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if self._is_some(cleaned) and not cleaned.get("models") and "models" not in self.errors:
            self.add_error("models", "Tick at least one model, or choose all.")
        return cleaned

    def chosen(self) -> list[str] | None:
        """None: all."""
        return self.cleaned_data["models"] if self._is_some(self.cleaned_data) else None

    @staticmethod
    def _is_some(cleaned: dict[str, Any]) -> bool:
        # A program that posts a form of before says nothing of models, and means all.
        return cleaned.get("which") == SOME
