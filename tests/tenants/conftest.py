import pytest


@pytest.fixture(scope="module")
def home(app):
    """A workspace for the tests of one module, which tell their members apart by name."""
    from tests.support.factories import WorkspaceFactory

    return WorkspaceFactory()


@pytest.fixture(scope="module")
def neighbour(app):
    """Another one, whose members, links and sessions are tried at home's door."""
    from tests.support.factories import WorkspaceFactory

    return WorkspaceFactory()


@pytest.fixture
def plane(app, settings):
    """Clients of a plane in this process whose views buy nothing."""
    from tests.support import plane_settings
    from tests.support.plane import PlaneClient

    for name in ("PLANE_URLCONF", "PLANE_STARTUP", "PLANE_SHUTDOWN"):
        setattr(settings, name, getattr(plane_settings, name))
    return PlaneClient
