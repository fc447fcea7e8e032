"""The leaky app's part in the plane."""

from tests.isolation.crawler.planted.leaky import plane_urlpatterns as urlpatterns

__all__ = ["urlpatterns"]
