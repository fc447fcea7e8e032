"""The database backend of `DATABASES["default"]`: django-tenants' own, which asks tenants.context first."""
