"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = "Write `manage.py provision_accounts`: it finishes what a sign-up began, the schema too."
