"""Settings of the embedded authority's processes: no tenants, no sessions, no templates, one app.

Owns the two ports, the admin key and the schema its tables live in. Nothing here is read by the web process.
"""

from __future__ import annotations

from config.database import NOTICED_WHEN_DEAD, database_from_url, owner_database_url
from config.env import envbool, envdomain, envint, envport, envsealingkey, envsecretkey
from config.production import refuse_known_secrets

SCHEMA = "authority"

DEBUG = False  # whatever the web does: a debug page would answer in HTML and show settings
ALLOWED_HOSTS = ["*"]  # the listener is on loopback and the plane is chosen by port, never by Host
ROOT_URLCONF = "billing.authority.admin.urls"
INSTALLED_APPS = ["billing.authority"]
MIDDLEWARE = ["billing.authority.admin.middleware.EnvelopeMiddleware"]
APPEND_SLASH = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

AUTHORITY_RUNTIME_PORT = envport("AUTHORITY_RUNTIME_PORT", 7878)
AUTHORITY_ADMIN_PORT = envport("AUTHORITY_ADMIN_PORT", 7979)
AUTHORITY_ADMIN_KEY = envsecretkey("CYCLES_ADMIN_API_KEY")
KEY_SEALING_KEY = envsealingkey("KEY_SEALING_KEY")
refuse_known_secrets(
    base_domain=envdomain("BASE_DOMAIN", "localhost"), sealing_key=KEY_SEALING_KEY, admin_key=AUTHORITY_ADMIN_KEY
)
AUTHORITY_CONNECTIONS = envint("DB_POOL_MAX", 2, minimum=1, maximum=100) or 2
AUTHORITY_ADMIN_THREADS = 4
# Reserves and commits that come at the same moment go to the database together; off: each by itself.
AUTHORITY_GATHER = envbool("AUTHORITY_GATHER", True)

# A schema of its own in the shared database: its tables never meet the web's, and its migrations have their own book.
# Whole answers are computed in the database, so jit would only cost time.
# As the owner: it makes the schema, its tables and functions, and web's role, which is the other one, may not see them.
_database = database_from_url(owner_database_url())
_options = _database.pop("OPTIONS")
DATABASES = {
    "default": {
        **_database,
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            **NOTICED_WHEN_DEAD,
            **_options,
            "options": f"{_options.get('options', '')} -c search_path={SCHEMA} -c jit=off".strip(),
            "application_name": "authority",
        },
    }
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {"django.request": {"level": "ERROR"}, "uvicorn": {"level": "WARNING"}},
}
