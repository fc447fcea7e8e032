"""The plane, on any host: async views that buy. Yours are `path("", include("haikus.urls_plane"))` here,
or one router of `plane_api`: named as strings, for config imports no app."""

from django.urls import path

from config.api import plane_api

urlpatterns = [
    path("api/", plane_api.urls),
]
