from django.urls import path
from django.views.decorators.http import require_safe
from django.views.generic import RedirectView

from tenants.users.pages import keys, signing_in, workspace

urlpatterns = [
    path("login/", signing_in.log_in, name="login"),
    path("logout/", signing_in.log_out, name="logout"),
    path("welcome/", signing_in.welcome, name="welcome"),
    path("settings/", require_safe(RedirectView.as_view(url="/settings/account/")), name="settings"),
    # Workspace
    path("settings/workspace/", workspace.workspace, name="workspace"),
    path("settings/workspace/address/", workspace.address, name="workspace_address"),
    # Keys
    path("settings/keys/", keys.api_keys, name="api_keys"),
    path("settings/keys/<int:pk>/revoke/", keys.revoke_key, name="revoke_key"),
]
