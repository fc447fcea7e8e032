from django.urls import path

from tenants.users import views

urlpatterns = [
    path("login/", views.log_in, name="login"),
    path("logout/", views.log_out, name="logout"),
    path("welcome/", views.welcome, name="welcome"),
    path("settings/keys/", views.api_keys, name="api_keys"),
    path("settings/keys/<int:pk>/revoke/", views.revoke_key, name="revoke_key"),
]
