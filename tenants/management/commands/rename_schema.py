"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = "Change the workspace's name: its schema's own is seen by nobody, and never changed or used again."
