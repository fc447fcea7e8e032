"""Where providers send browsers back to: on the bare host, for all workspaces."""

from django.urls import path

from tenants.users.pages import providers

urlpatterns = [path("login/back/<slug:provider>/", providers.relay, name="relay")]
