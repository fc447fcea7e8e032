"""The plane's process for tests that buy nothing: the real settings, views that do nothing."""

from config.settings import *  # noqa: F403

PLANE_URLCONF = "tests.support.plane_urls"
PLANE_STARTUP = PLANE_SHUTDOWN = ""
