"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = (
        "Write `manage.py in_tenant --all COMMAND`: each active workspace in turn, and one that fails stops no other."
    )
