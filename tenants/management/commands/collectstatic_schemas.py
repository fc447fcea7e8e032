"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = "Write `manage.py collectstatic`: all workspaces have the same static files."
