"""Settings of the jobs process in tests: the real ones, with tasks and a sweep made for tests."""

from config.settings import *  # noqa: F403

PROCRASTINATE_IMPORT_PATHS = ["tests.support.job_tasks"]
SWEEP = "tests.support.job_tasks.sweep"
