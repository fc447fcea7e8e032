"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = "Call `tenants.services.suspend` in `manage.py shell`: it shuts a workspace's doors and keeps its books."
