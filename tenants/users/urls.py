from django.urls import path
from django.views.decorators.http import require_safe
from django.views.generic import RedirectView

from tenants.users.pages import (
    account,
    invitations,
    keys,
    log_in_links,
    members,
    origins,
    passwords,
    rates,
    second_step,
    security,
    signing_in,
    workspace,
)

urlpatterns = [
    path("login/", signing_in.log_in, name="login"),
    path("logout/", signing_in.log_out, name="logout"),
    path("welcome/", signing_in.welcome, name="welcome"),
    # Links in mails
    path("login/link/", log_in_links.ask, name="ask_for_link"),
    path("login/link/sent/", log_in_links.sent, name="link_sent"),
    path("login/link/<str:secret>/", log_in_links.follow, name="log_in_link"),
    path("settings/", require_safe(RedirectView.as_view(url="/settings/account/")), name="settings"),
    # Workspace
    path("settings/workspace/", workspace.workspace, name="workspace"),
    path("settings/workspace/address/", workspace.address, name="workspace_address"),
    path("settings/workspace/origins/", origins.origins, name="workspace_origins"),
    path("settings/workspace/models/", workspace.models, name="workspace_models"),
    # Security
    path("login/code/", second_step.code, name="second_step"),
    path("settings/security/", security.security, name="security"),
    path("settings/security/two-step/", second_step.set_up, name="two_step"),
    path("settings/security/two-step/off/", second_step.turn_off, name="two_step_off"),
    path("settings/security/two-step/codes/", second_step.recovery_codes, name="recovery_codes"),
    path("settings/security/required/", security.require, name="require_two_step"),
    path("settings/security/sessions/end/", security.end_sessions, name="end_sessions"),
    path("settings/security/sessions/<int:pk>/end/", security.end_session, name="end_session"),
    # Members
    path("settings/members/", members.members, name="members"),
    path("settings/members/leave/", members.leave, name="leave"),
    path("settings/members/hand-over/", members.hand_over, name="hand_over"),
    path("settings/members/<int:pk>/role/", members.change_role, name="change_role"),
    path("settings/members/<int:pk>/remove/", members.remove, name="remove_member"),
    path("settings/invitations/", invitations.invite, name="invite"),
    path("settings/invitations/<int:pk>/resend/", invitations.resend, name="resend_invitation"),
    path("settings/invitations/<int:pk>/revoke/", invitations.revoke, name="revoke_invitation"),
    path("invitation/<str:secret>/", invitations.invitation, name="invitation"),
    # One's own account
    path("settings/account/", account.account, name="account"),
    path("settings/account/email/", account.change_email, name="change_email"),
    path("settings/account/password/", account.change_own_password, name="change_password"),
    path("settings/account/confirm/", account.send_confirmation, name="send_confirmation"),
    path("confirm/<str:secret>/", account.confirm_email, name="confirm_email"),
    path("email/<str:secret>/", account.change_email_by_link, name="change_email_by_link"),
    path("password/", passwords.ask_reset, name="ask_reset"),
    path("password/asked/", passwords.reset_asked, name="reset_asked"),
    path("password/<str:secret>/", passwords.reset, name="reset"),
    # Keys
    path("settings/keys/", keys.api_keys, name="api_keys"),
    path("settings/keys/<int:pk>/rates/", rates.key_rates, name="key_rates"),
    path("settings/keys/<int:pk>/rotate/", keys.rotate, name="rotate_key"),
    path("settings/keys/<int:pk>/models/", keys.models, name="key_models"),
    path("settings/keys/<int:pk>/revoke/", keys.revoke, name="revoke_key"),
]
