"""What the trail's page says for each event; moments in the page's time zone. An event that this release does not know
is shown by its own name.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from django.utils.dateformat import format as format_date
from django.utils.timezone import localtime

from tenants.audit.events import Event
from tenants.http import shortened

# Said of whoever did it: "alice@acme.example" + "logged in".
WORDS: dict[Event, str] = {
    Event.LOGGED_IN: "logged in",
    Event.LOG_IN_FAILED: "could not log in",
    Event.LOGGED_OUT: "logged out",
    Event.SESSION_ENDED: "logged a browser out",
    Event.SESSIONS_ENDED: "logged out everywhere",
    Event.PASSWORD_CHANGED: "changed a password",
    Event.PASSWORD_RESET: "set a new password by mail",
    Event.RESET_ASKED: "asked for a new password by mail",
    Event.EMAIL_CHANGED: "changed an e-mail address",
    Event.EMAIL_CONFIRMED: "confirmed an e-mail address",
    Event.SECOND_STEP_ADDED: "turned two-step log-in on",
    Event.SECOND_STEP_REMOVED: "turned two-step log-in off",
    Event.RECOVERY_CODES_MADE: "made recovery codes",
    Event.RECOVERY_CODE_USED: "used a recovery code",
    Event.IDENTITY_LINKED: "linked an account of a provider",
    Event.IDENTITY_UNLINKED: "unlinked an account of a provider",
    Event.INVITED: "invited somebody",
    Event.INVITATION_RESENT: "sent an invitation again",
    Event.INVITATION_REVOKED: "revoked an invitation",
    Event.JOINED: "joined the workspace",
    Event.REMOVED: "removed a member",
    Event.LEFT: "left the workspace",
    Event.FORMER_CHAT_READ: "read a former member’s conversation",
    Event.ROLE_CHANGED: "changed a role",
    Event.HANDED_OVER: "handed the workspace over",
    Event.KEY_MADE: "made an API key",
    Event.KEY_ROTATED: "rotated an API key",
    Event.KEY_MODELS_CHANGED: "changed which models an API key may call",
    Event.KEY_REVOKED: "revoked an API key",
    Event.KEY_RATES_SET: "changed how much an API key may ask for",
    Event.LIMIT_SET: "set a limit",
    Event.LIMIT_REMOVED: "removed a limit",
    Event.TOPPED_UP: "added money to the budget",
    Event.ALLOWANCE_GRANTED: "granted the allowance",
    Event.RENAMED: "renamed the workspace",
    Event.ADDRESS_CHANGED: "changed the workspace’s address",
    Event.MODELS_ALLOWED: "changed which models may be called",
    Event.CHAT_CHANGED: "changed how its chat asks models",
    Event.TIME_ZONE_CHANGED: "changed the time zone",
    Event.ORIGINS_CHANGED: "changed which web pages may ask the API",
    Event.ANSWERS_GO_ON: "let answers go on when their reader leaves",
    Event.ANSWERS_STOP: "had answers stop when their reader leaves",
    Event.SECOND_STEP_REQUIRED: "began to require two-step log-in",
    Event.SECOND_STEP_NOT_REQUIRED: "stopped requiring two-step log-in",
    Event.DELETED: "deleted the workspace",
    Event.REOPENED: "opened the workspace again",
    Event.CONVERSATION_SHARED: "shared a conversation with the workspace",
    Event.CONVERSATION_UNSHARED: "stopped sharing a conversation",
    Event.PROMPT_DELETED: "deleted a prompt that somebody else shared",
    Event.TITLES_SWITCHED: "changed whether the model writes titles",
    Event.TRAIL_EXPORTED: "downloaded the audit trail",
}
AREAS = {
    "sign_in": "Log-ins",
    "members": "Members",
    "roles": "Roles",
    "keys": "API keys",
    "budgets": "Budgets",
    "conversations": "Conversations",
    "prompts": "Prompts",
    "settings": "Settings",
    "audit": "Audit trail",
}
# What a detail is called where its own name does not say it.
DETAILS = {
    "ended": "browsers",
    "expires_at": "expires",
    "here_too": "this browser too",
    "left": "codes left",
    "rows": "lines",
    "steps_down": "became an admin",
    "usd": "US dollars",
}
VIA = {"link": "by a link", "command": "by a command", "job": "by a job"}
_KNOWN = {event.value: event for event in Event}


def words_for(event: str) -> str:
    known = _KNOWN.get(event)
    return WORDS.get(known, event) if known else event


def area_of(event: str) -> str:
    return event.partition(".")[0]


def events_of(area: str) -> list[str]:
    return [event.value for event in Event if area_of(event.value) == area]


def area_words(area: str) -> str:
    return AREAS.get(area, area.replace("_", " ").capitalize())


def actor_words(actor: str) -> str:
    return {"": "somebody who is not logged in", "operator": "the operator", "system": "the system"}.get(actor, actor)


def detail_words(details: object) -> list[tuple[str, str]]:
    """What an event says beside, in the order in which names are sorted, each as a short text."""
    if not isinstance(details, dict):
        return []
    return [
        (DETAILS.get(str(name), str(name).replace("_", " ")), _detail(str(name), value))
        for name, value in sorted(details.items())
    ]


def _detail(name: str, value: object) -> str:
    if name == "method":  # of a log-in: "password+code"
        return _text(value).replace("+", " and ")
    if name.endswith("_at") and isinstance(value, str):
        with suppress(ValueError):
            return format_date(localtime(datetime.fromisoformat(value)), "j M Y, H:i T")
    return _text(value)


def _text(value: object) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_text(part) for part in value) or "none"
    return shortened(str(value), 200)
