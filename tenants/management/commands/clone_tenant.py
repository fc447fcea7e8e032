"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = (
        "Sign up for a new workspace, by the page or by POST /api/signup/: a copy would have the "
        "other's people, and their passwords."
    )
