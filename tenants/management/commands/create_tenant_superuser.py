"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    # A superuser of Django's may no more here than their role, and a new one's is a member's.
    instead = (
        "Invite them, at /settings/members/. Without a mail: `manage.py in_tenant --tenant SLUG createsuperuser`, and "
        "then `manage.py set_role SLUG EMAIL owner`."
    )
