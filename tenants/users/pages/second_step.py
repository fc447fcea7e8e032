"""The second step's pages: its code at log-in, setting it up, its recovery codes, turning it off."""

from __future__ import annotations

import json
import time

import segno
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.http import require_http_methods

from tenants.http import TenantRequest
from tenants.roles import Action
from tenants.sealing import seal, unseal
from tenants.users import second_step
from tenants.users.access import needs
from tenants.users.auth import is_fresh, is_signed_in, note_proof
from tenants.users.entering import finish, first_step, forget_first_step, on_the_way, safe_target
from tenants.users.forms.security import WRONG_CODE, CodeForm, FirstCodeForm, PasswordAgain, PasswordAndCode
from tenants.users.pages.answers import answer, looked_at
from tenants.users.signed_out import way_in

AGAIN = "Log in again: your first step was too long ago, or your account has changed since."
# Where recovery codes lie, sealed, between the form that made them and the page that shows them.
NEW_CODES = "new_recovery_codes"
SHOWN_WITHIN = 600


@require_http_methods(["GET", "HEAD", "POST"])
@way_in
def code(request: TenantRequest) -> HttpResponse:
    """The second step of a log-in, for whoever has taken the first on this browser."""
    target = request.POST.get("next") or request.GET.get("next") or ""
    first = first_step(request)
    if first is None or request.user == first.user:
        return _without_a_first_step(request, target)
    by_recovery = (request.POST.get("with") or request.GET.get("with")) == "recovery"
    form = CodeForm(request.POST or None, request=request, user=first.user, by_recovery=by_recovery)
    is_right, refusal = looked_at(request, form)
    if is_right:
        return finish(request, first.user, method=f"{first.method}+{form.kind.value}", target=target)
    context = {"form": form, "next": target, "by_recovery": by_recovery}
    return answer(request, "users/second_step.html", context, form, refusal)


def _without_a_first_step(request: TenantRequest, target: str) -> HttpResponse:
    """Home, for who is in already, such as by the same form sent twice; else to log in again."""
    if is_signed_in(request):
        response: HttpResponse = redirect(safe_target(target))
    else:
        messages.error(request, AGAIN)
        response = redirect(on_the_way(reverse("login"), target))
    forget_first_step(response)
    return response


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.ACCOUNT)
def set_up(request: TenantRequest) -> HttpResponse:
    """By the password, then by the first code of a new secret. Once it is on: what there is to do with it."""
    if request.user.second_step_at:
        if NEW_CODES in request.session:  # of a form that was sent twice, whose first answer went unseen
            return redirect("recovery_codes")
        left = second_step.recovery_codes_left(request.user)
        return render(request, "users/second_step_on.html", {"codes_left": left})
    started = second_step.begun(request.user) if is_fresh(request) else None
    if started is None or request.POST.get("begin"):
        return _begin(request)
    form = FirstCodeForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        codes = second_step.confirm(request.user, form.cleaned_data["code"], request=request)
        if codes is not None:
            messages.success(request, "Two-step log-in is on.")
            return _show(request, codes)
        request.user.refresh_from_db(fields=["second_step_at"])
        if request.user.second_step_at:  # by the same form, which was sent twice
            return redirect("two_step")
        form.add_error("code", WRONG_CODE)
    context = {"form": form, "set_up": started, "picture": _picture(started.uri)}
    return answer(request, "users/second_step_set_up.html", context, form)


def _begin(request: TenantRequest) -> HttpResponse:
    form = PasswordAgain(request.POST or None, request=request)
    fresh = is_fresh(request)
    is_right, refusal = (request.method == "POST", None) if fresh else looked_at(request, form)
    if is_right:
        if not fresh:
            note_proof(request)
        second_step.begin(request.user)
        return redirect("two_step")
    return answer(request, "users/second_step_begin.html", {"form": form, "is_fresh": fresh}, form, refusal)


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.ACCOUNT)
def turn_off(request: TenantRequest) -> HttpResponse:
    if request.user.second_step_at is None:
        return redirect("two_step")
    form = PasswordAndCode(request.POST or None, request=request)
    if request.tenant.requires_second_step:
        # Before the code is looked at, which would use it up.
        return render(request, "users/second_step_off.html", {"form": form}, status=403 if form.is_bound else 200)
    is_right, refusal = looked_at(request, form)
    if is_right:
        second_step.turn_off(request.user, request=request)
        messages.success(request, "Two-step log-in is off. Your password alone opens your account again.")
        return redirect("security")
    return answer(request, "users/second_step_off.html", {"form": form}, form, refusal)


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.ACCOUNT)
def recovery_codes(request: TenantRequest) -> HttpResponse:
    """New ones by password and code; and once, those that have just been made."""
    if request.user.second_step_at is None:
        return redirect("two_step")
    if request.method == "GET" and (codes := _taken(request)):
        return render(request, "users/second_step_codes.html", {"codes": codes})
    if request.method == "POST" and NEW_CODES in request.session:  # the same form once more, whose code is used up
        return redirect("recovery_codes")
    form = PasswordAndCode(request.POST or None, request=request)
    is_right, refusal = looked_at(request, form)
    if is_right:
        return _show(request, second_step.renew_recovery_codes(request.user, request=request))
    context = {"form": form, "codes_left": second_step.recovery_codes_left(request.user)}
    return answer(request, "users/second_step_renew.html", context, form, refusal)


def _show(request: TenantRequest, codes: list[str]) -> HttpResponse:
    """By a page of its own, so that a reload of it makes nothing anew."""
    request.session[NEW_CODES] = seal(json.dumps({"codes": codes, "until": int(time.time()) + SHOWN_WITHIN}))
    return redirect("recovery_codes")


def _taken(request: TenantRequest) -> list[str]:
    sealed = request.session.pop(NEW_CODES, None)
    if sealed is None:
        return []
    kept = json.loads(unseal(sealed))
    codes: list[str] = kept["codes"]
    return codes if time.time() < kept["until"] else []


def _picture(uri: str) -> SafeString:
    """For the app's camera: dark on light whatever the page is, and without style, which the page's policy forbids."""
    code = segno.make(uri, error="l", micro=False)
    drawn = code.svg_inline(
        border=4, light="#fff", dark="#000", svgclass="picture", lineclass=None, omitsize=True,
        title="The same secret as a picture for your app’s camera",
    )  # fmt: skip
    return mark_safe(drawn)  # noqa: S308  # segno's own drawing: squares, and the title above
