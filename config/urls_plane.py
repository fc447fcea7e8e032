"""The plane, on any host: async views that buy. Yours is one `path` here, or one router of `plane_api`."""

from django.urls import path

from config.api import plane_api

urlpatterns = [
    path("api/", plane_api.urls),
]
