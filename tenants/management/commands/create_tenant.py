"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = (
        "Sign up, by the page or by POST /api/signup/: it makes a workspace with its schema, budget and "
        "owner, or goes on where it stopped."
    )
