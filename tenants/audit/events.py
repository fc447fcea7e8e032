"""What the audit trail calls the things that happen. Pure; one name for each, and what is written stays as it was."""

from __future__ import annotations

from enum import StrEnum


class Event(StrEnum):
    """`<area>.<what happened>`. The part before the dot is what the trail's page filters by."""

    LOGGED_IN = "sign_in.logged_in"
    LOG_IN_FAILED = "sign_in.failed"
    LOGGED_OUT = "sign_in.logged_out"
    SESSION_ENDED = "sign_in.session_ended"
    SESSIONS_ENDED = "sign_in.all_sessions_ended"
    PASSWORD_CHANGED = "sign_in.password_changed"  # a name
    PASSWORD_RESET = "sign_in.password_reset"
    RESET_ASKED = "sign_in.reset_asked"
    EMAIL_CHANGED = "sign_in.email_changed"
    EMAIL_CONFIRMED = "sign_in.email_confirmed"
    SECOND_STEP_ADDED = "sign_in.second_step_added"
    SECOND_STEP_REMOVED = "sign_in.second_step_removed"
    RECOVERY_CODES_MADE = "sign_in.recovery_codes_made"
    RECOVERY_CODE_USED = "sign_in.recovery_code_used"
    IDENTITY_LINKED = "sign_in.identity_linked"
    IDENTITY_UNLINKED = "sign_in.identity_unlinked"

    INVITED = "members.invited"
    INVITATION_RESENT = "members.invitation_resent"
    INVITATION_REVOKED = "members.invitation_revoked"
    JOINED = "members.joined"
    REMOVED = "members.removed"
    LEFT = "members.left"
    FORMER_CHAT_READ = "members.former_chat_read"

    ROLE_CHANGED = "roles.changed"
    HANDED_OVER = "roles.handed_over"

    KEY_MADE = "keys.made"
    KEY_ROTATED = "keys.rotated"
    KEY_MODELS_CHANGED = "keys.models_changed"
    KEY_REVOKED = "keys.revoked"
    KEY_RATES_SET = "keys.rates_set"

    LIMIT_SET = "budgets.limit_set"
    LIMIT_REMOVED = "budgets.limit_removed"
    TOPPED_UP = "budgets.topped_up"
    ALLOWANCE_GRANTED = "budgets.allowance_granted"

    RENAMED = "settings.renamed"
    ADDRESS_CHANGED = "settings.address_changed"
    MODELS_ALLOWED = "settings.models_allowed"
    CHAT_CHANGED = "settings.chat_changed"
    TIME_ZONE_CHANGED = "settings.time_zone_changed"
    ORIGINS_CHANGED = "settings.origins_changed"
    ANSWERS_GO_ON = "settings.answers_go_on"
    ANSWERS_STOP = "settings.answers_stop"
    SECOND_STEP_REQUIRED = "settings.second_step_required"
    SECOND_STEP_NOT_REQUIRED = "settings.second_step_not_required"
    DELETED = "settings.deleted"
    REOPENED = "settings.reopened"

    CONVERSATION_SHARED = "conversations.shared"
    CONVERSATION_UNSHARED = "conversations.unshared"
    PROMPT_DELETED = "prompts.deleted"  # one that somebody else shared
    TITLES_SWITCHED = "settings.titles_by_model"

    TRAIL_EXPORTED = "audit.exported"
