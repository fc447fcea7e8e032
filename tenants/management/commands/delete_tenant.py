"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = (
        "An owner deletes a workspace on its page, and `manage.py reopen_workspace` undoes it. To shut its doors and "
        "keep its books, call `tenants.services.suspend` in `manage.py shell`."
    )
