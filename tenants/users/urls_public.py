"""People's pages on the bare host."""

from django.urls import path

from tenants.users.pages import finding

urlpatterns = [
    path("login/", finding.choose, name="choose_workspace"),
    path("find/", finding.find, name="find"),
    path("find/sent/", finding.sent, name="find_sent"),
]
