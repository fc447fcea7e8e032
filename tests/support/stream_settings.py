"""Web with views that stream: the real settings else."""

from config.settings import *  # noqa: F403

PUBLIC_SCHEMA_URLCONF = ROOT_URLCONF = "tests.support.stream_urls"
