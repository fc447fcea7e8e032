"""The sound app's part in the plane."""

from tests.isolation.crawler.planted.sound import plane_urlpatterns as urlpatterns

__all__ = ["urlpatterns"]
