"""The real settings, with patience."""

from config.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "tests.support.patience.Patience"]  # noqa: F405
