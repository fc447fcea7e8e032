"""In place of django-tenants' command of this name (tenants.commands)."""

from tenants.commands import Superseded


class Command(Superseded):
    instead = "A workspace has one address, made with it by `tenants.services.register_tenant`."
