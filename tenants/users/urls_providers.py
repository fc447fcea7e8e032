"""Logging in with a provider, on a tenant's host."""

from django.urls import path

from tenants.users.pages import providers

urlpatterns = [
    path("login/with/<slug:provider>/", providers.log_in_with, name="log_in_with"),
    path("login/back/<slug:provider>/", providers.come_back, name="come_back"),
    path("settings/account/identities/<int:pk>/unlink/", providers.unlink_identity, name="unlink_identity"),
    path("settings/account/identities/<slug:provider>/", providers.link_identity, name="link_identity"),
]
