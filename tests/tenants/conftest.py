import pytest


@pytest.fixture
def plane(app, settings):
    """Clients of a plane in this process whose views buy nothing."""
    from tests.support import plane_settings
    from tests.support.plane import PlaneClient

    for name in ("PLANE_URLCONF", "PLANE_STARTUP", "PLANE_SHUTDOWN"):
        setattr(settings, name, getattr(plane_settings, name))
    return PlaneClient
