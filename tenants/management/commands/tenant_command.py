"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = "Write `manage.py in_tenant --tenant SLUG COMMAND`: the command then works inside that workspace."
