"""Settings of the web process and the commands: one flat file.

Owns wiring only. Imports no app (they are named as strings) and starts nothing: addresses are computed.
Every variable is in .env.example with its meaning; nonsense is refused by config.env.
"""

from __future__ import annotations

from email.utils import formataddr
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from config.brand import brand
from config.database import NOTICED_WHEN_DEAD, database_from_url, database_url, embedded_database, serving_role
from config.env import (
    BASE_DIR,
    envaddress,
    envbool,
    envbrand,
    envchoice,
    envdialects,
    envdomain,
    envfactor,
    envhosts,
    envint,
    envkey,
    envorigin,
    envport,
    envprices,
    envproxies,
    envrate,
    envrates,
    envsealingkey,
    envseconds,
    envsecret,
    envsecretkey,
    envstr,
    envsubject,
    envurl,
    envusd,
    state_dir,
)
from config.models import can_chat, envmodels
from config.production import (
    is_loopback,
    refuse_half_a_mail_server,
    refuse_known_secrets,
    refuse_unsafe,
    refuse_unsendable,
)
from config.providers import envproviders

# What the site is called, its accent and its logo; config/brand.py says what each may be.
BRAND = brand()
PRODUCT_NAME = BRAND.name
STATE_DIR = state_dir()
DEBUG = envbool("DEBUG", False)
SECRET_KEY = envsecret("SECRET_KEY")
KEY_SEALING_KEY = envsealingkey("KEY_SEALING_KEY")

# Hosts. Links to another host are built from SITE_URL, never from a Host header.
PORT = envport("PORT", 8000)
BASE_DOMAIN = envdomain("BASE_DOMAIN", "localhost")
SITE_URL = envorigin("SITE_URL", f"http://{BASE_DOMAIN}:{PORT}")
ALLOWED_HOSTS = envhosts("ALLOWED_HOSTS", [f".{BASE_DOMAIN}"])
# Whether Caddy is before web, and says who the client is. With a proxy in its place that is read from X-Forwarded-For.
FRONT = envbool("FRONT", True)
if urlsplit(SITE_URL).hostname != BASE_DOMAIN:
    raise ImproperlyConfigured(f"SITE_URL is {SITE_URL!r}: its host must be BASE_DOMAIN, {BASE_DOMAIN!r}.")
refuse_unsafe(
    base_domain=BASE_DOMAIN,
    site_url=SITE_URL,
    debug=DEBUG,
    allowed_hosts=ALLOWED_HOSTS,
    secret_key=SECRET_KEY,
    front=FRONT,
    proxies=envproxies("FRONT_TRUSTED_PROXIES"),
)

SHARED_APPS = [
    # Before django-tenants, in place of whose commands it has its own.
    "tenants",
    "django_tenants",
    "billing",
    "procrastinate.contrib.django",
    # Both sides: operators are users of the public schema; the state gate keeps tenants' requests out of it.
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "tenants.users",
    "tenants.mail",
    # No tables.
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "ninja",
]
TENANT_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "tenants.users",
    "tenants.mail",
    "tenants.audit",
    "billing.usage",
    "chat",
]
# Whose tables are one for all tenants, and meant to be. A check refuses any other shared app with models.
SHARED_ON_PURPOSE = ["tenants", "billing", "procrastinate.contrib.django"]
INSTALLED_APPS = [*SHARED_APPS, *(app for app in TENANT_APPS if app not in SHARED_APPS)]

TENANT_MODEL = "tenants.Tenant"
TENANT_DOMAIN_MODEL = "tenants.Domain"
AUTH_USER_MODEL = "users.User"
# A SET once per connection and tenant rather than one per query. Must be off under a transaction pooler.
TENANT_LIMIT_SET_CALLS = True
SHOW_PUBLIC_IF_NO_TENANT_FOUND = False
GET_EXECUTOR_FUNCTION = "tenants.executor.get_executor"
# A new tenant's schema by replaying what migrations did once; off: by the migrations themselves, each time.
SCHEMA_TEMPLATE = envbool("SCHEMA_TEMPLATE", True)

MIDDLEWARE = [
    # The headers of every answer, so outside of what answers by itself.
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "tenants.headers.PolicyMiddleware",
    "tenants.middleware.HealthMiddleware",
    "tenants.brand.BrandMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "tenants.middleware.TenantMiddleware",
    "tenants.time_zones.TimeZoneMiddleware",
    "tenants.middleware.StreamMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "tenants.middleware.SlashMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "tenants.users.middleware.TenantSessionMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "tenants.users.middleware.SeenMiddleware",
    "tenants.users.middleware.SecondStepMiddleware",
    "tenants.middleware.ApiErrorMiddleware",
    "billing.middleware.BudgetErrorMiddleware",
    "billing.middleware.PreflightMiddleware",
]
# Of the threads of each worker of web, so many may write streams: the others are for pages.
WEB_STREAMS = max(1, (envint("WEB_THREADS", 16, minimum=1, maximum=1000) or 16) // 2)
ROOT_URLCONF = "config.urls"
PUBLIC_SCHEMA_URLCONF = "config.urls_public"
WSGI_APPLICATION = "config.wsgi.application"
WEB_REQUEST = "tenants.http.WebRequest"

# The plane: async views that buy, in a process of its own (config.asgi). `fetch(sql, params)` asks its database.
ASGI_APPLICATION = "config.asgi.application"
PLANE_URLCONF = "config.urls_plane"
PLANE_REQUEST = "tenants.http.PlaneRequest"
PLANE_CONNECTION = "tenants.asgi"
PLANE_MIDDLEWARE = ["tenants.plane.PlaneMiddleware"]
PLANE_SQL = "billing.engine.fetch"
# Served beside Django, for what its frame costs: an ASGI application by the beginning of its paths.
PLANE_BARE = {"/v1/": "chat.v1.app.application"}
# Of one request there: pictures come in its JSON. The front has the same limit (config/Caddyfile).
API_BODY_BYTES = (envint("API_BODY_MB", 8, minimum=1, maximum=32) or 8) * 1024 * 1024
# For so long at most a process keeps the rows that say whose a host and a key are (tenants.kept); 0: none is kept.
LOOKUPS_KEPT_SECONDS = envseconds("LOOKUPS_KEPT_SECONDS", 30.0, or_none=True)
# Read with the member who asks, which spares a paid call a statement: who pays for the tenant.
ASKER_BESIDE = "billing.engine.statements.ACCOUNT_OF_TENANT"
# What the pages of members and of keys show on each row, from a room further up: (request, rows) -> HTML by id.
MEMBERS_BESIDE = "billing.seats.beside_members"
KEYS_BESIDE = "billing.seats.beside_keys"
# Of which models a workspace, and a key, may be allowed some: () -> their names.
CALLABLE_MODELS = "chat.pricing.callable_models"
# Called with a key that is rotated and the one in its place, before that one opens anything: what limits the first must
# hold for the second. If it raises, the second never opens. Empty: nothing is called.
KEY_ROTATED = "billing.seats.key_rotated"
# What the workspaces' API keys begin with. Keys of an earlier brand go on.
KEY_BRAND = envbrand("KEY_BRAND", "tk")
PLANE_STARTUP = "billing.engine.start_plane"
PLANE_SHUTDOWN = "billing.engine.stop_plane"
APPEND_SLASH = True

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "config" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "tenants.context_processors.site",
                "tenants.context_processors.role",
            ]
        },
    }
]


def _reset_session(connection: Any) -> None:
    """Before a connection goes back to the pool: raw SQL on it then fails instead of reading the last tenant."""
    said = connection.info.parameter_status
    if "on" in (said("default_transaction_read_only"), said("in_hot_standby")):
        # It was begun while its server took nothing, and would refuse what is written for as long as it is kept.
        connection.close()
        return
    connection.execute("RESET search_path")
    if not connection.autocommit:
        connection.commit()


DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        **database_from_url(database_url()),
        # django-tenants' own; it also refuses statements of code that is bound to no tenant, or to another one.
        "ENGINE": "tenants.backend",
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "ATOMIC_REQUESTS": False,
        "TEST": {"NAME": "test_app"},
    }
}
DATABASES["default"]["OPTIONS"] = NOTICED_WHEN_DEAD | DATABASES["default"]["OPTIONS"]
# Set by the process that serves. Commands have none: a forked or forgotten pool hangs (traps of psycopg_pool).
DB_POOL_MAX = envint("DB_POOL_MAX", None, minimum=1, maximum=1000)
if DB_POOL_MAX:
    DATABASES["default"]["OPTIONS"]["pool"] = {
        "min_size": min(2, DB_POOL_MAX),
        "max_size": DB_POOL_MAX,
        "timeout": 5,
        # A backend keeps ~100 KB of catalogue for each tenant it has met, and gives none back.
        "max_lifetime": 900,
        "reset": _reset_session,
    }
# The role of web and plane, which may read and write rows and make nothing; empty where they are the owner. Of these
# tables it may not change a row: what was settled stays (tenants.grants).
SERVING_ROLE = serving_role()
APPEND_ONLY_TABLES = ["usage_usageline", "billing_houseline", "audit_auditevent"]
# Under `make run` the demo workspace is part of being ready; a production database has none.
EXPECT_DEMO = embedded_database()
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "KEY_FUNCTION": "tenants.cache.make_key",
    }
}
# Whose entries are one for all tenants, and meant to be. A check refuses any other alias without the key function.
CACHES_SHARED_ON_PURPOSE: list[str] = []
STORAGES: dict[str, dict[str, Any]] = {
    # Uploads, if an app of yours has any. `view` in OPTIONS names the view that serves them (README, Files).
    "default": {"BACKEND": "tenants.files.TenantFiles", "OPTIONS": {"location": STATE_DIR / "files"}},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

# Who is signed in. Cookies are host-only, so that one workspace's session never reaches another's host.
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/login/"
AUTHENTICATION_BACKENDS = ["tenants.users.backends.MemberBackend"]
# One alone: what it does not do, another would do on the threads of requests.
PASSWORD_HASHERS = ["tenants.users.hashers.InTurn"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "tenants.users.passwords.NotBlank"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
SESSION_COOKIE_HTTPONLY = True
# Whom people can log in with beside a password, by name; none unless a variable says so.
LOGIN_PROVIDERS = envproviders()

# Mail. Who it comes from, before which a workspace's name is put; and the server that takes it. Without one a laptop
# prints what it would send, and a site that others can reach sends nothing: links that open doors are for no log.
MAIL_FROM = envaddress("MAIL_FROM", f"no-reply@{BASE_DOMAIN}")
DEFAULT_FROM_EMAIL = SERVER_EMAIL = formataddr((PRODUCT_NAME, MAIL_FROM))
EMAIL_HOST = envdomain("SMTP_HOST", "") if envstr("SMTP_HOST") else ""
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = envstr("SMTP_USER"), envstr("SMTP_PASSWORD")
_SECURITY = envchoice("SMTP_SECURITY", "starttls", ("starttls", "tls", "none"))
EMAIL_USE_TLS, EMAIL_USE_SSL = _SECURITY == "starttls", _SECURITY == "tls"
EMAIL_PORT = envport("SMTP_PORT", 465 if EMAIL_USE_SSL else 587)
EMAIL_TIMEOUT = 10  # seconds of silence in a conversation with it
refuse_half_a_mail_server(
    base_domain=BASE_DOMAIN,
    host=EMAIL_HOST,
    user=EMAIL_HOST_USER,
    password=EMAIL_HOST_PASSWORD,
    security=_SECURITY,
)
if EMAIL_HOST:
    EMAIL_BACKEND = "tenants.mail.backends.Smtp"
else:
    EMAIL_BACKEND = f"tenants.mail.backends.{'Printing' if is_loopback(BASE_DOMAIN) else 'Nowhere'}"

# What browsers are told to hold us to.
_HTTPS = SITE_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _HTTPS
# TLS ends at a proxy before the front; the front passes on what the proxies of FRONT_TRUSTED_PROXIES say. Forms are
# held to the scheme, host and port of their own page. No CSRF_TRUSTED_ORIGINS: with all workspaces in it, one could
# send another's forms.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _HTTPS else None
# The front's own answers say the same (config/Caddyfile). With the workspaces, which all lie below BASE_DOMAIN.
SECURE_HSTS_SECONDS = 31_536_000 if _HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = _HTTPS
SILENCED_SYSTEM_CHECKS = [
    # The proxy that does TLS sends plain http away. Done here, a proxy that forgets X-Forwarded-Proto would be sent
    # round in circles, and browsers would remember that.
    "security.W008",
    # Browsers' own lists are for who owns the whole domain to join, and hard to leave.
    "security.W021",
]
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# What a page may load, and where its forms may go; on the bare host also to the workspaces (tenants.headers).
SECURE_CSP = {
    "default-src": ["'self'"],
    "base-uri": ["'none'"],
    "object-src": ["'none'"],
    "frame-ancestors": ["'none'"],
    "form-action": ["'self'"],
}
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024
# One file of a message, and the addresses whose body may be larger: beside the file, what was typed comes along.
CHAT_FILE_BYTES = (envint("CHAT_FILE_MB", 8, minimum=1, maximum=16) or 8) * 1024 * 1024
LARGER_BODIES = {"/c/files/": CHAT_FILE_BYTES + 1024 * 1024}
CSRF_FAILURE_VIEW = "tenants.views.csrf_failed"

STATIC_URL = "/static/"
# The pages' letters are packages of font files: the one family of config/static/site.css.
_FONTS = ("fontpkg_ibm_plex_sans", "fontpkg_ibm_plex_mono")
STATICFILES_DIRS = [
    BASE_DIR / "config" / "static",
    *(("fonts", str(files(package) / "files")) for package in _FONTS),
]
# No build step between clone and page: whitenoise serves from the apps' folders, and no STATIC_ROOT is collected.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG
# What browsers ask for at the root of any host, whatever the page says: favicon.ico, apple-touch-icon.png.
WHITENOISE_ROOT = BASE_DIR / "config" / "root"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

# The budget authority, by its two addresses. Whose they are is nobody's business but the supervisor's.
_RUNTIME, _ADMIN = envurl("CYCLES_BASE_URL"), envurl("CYCLES_ADMIN_URL")
if bool(_RUNTIME) != bool(_ADMIN):
    missing = "CYCLES_ADMIN_URL" if _RUNTIME else "CYCLES_BASE_URL"
    raise ImproperlyConfigured(f"{missing} is not set: an external authority needs both of its addresses.")
if _RUNTIME and not envstr("CYCLES_ADMIN_API_KEY"):
    raise ImproperlyConfigured("CYCLES_ADMIN_API_KEY is not set: an external authority needs its admin key.")
CYCLES_BASE_URL = _RUNTIME or f"http://127.0.0.1:{envport('AUTHORITY_RUNTIME_PORT', 7878)}"
CYCLES_ADMIN_URL = _ADMIN or f"http://127.0.0.1:{envport('AUTHORITY_ADMIN_PORT', 7979)}"
CYCLES_ADMIN_API_KEY = envsecretkey("CYCLES_ADMIN_API_KEY")
refuse_known_secrets(base_domain=BASE_DOMAIN, sealing_key=KEY_SEALING_KEY, admin_key=CYCLES_ADMIN_API_KEY)
CYCLES_CONNECT_TIMEOUT = envseconds("CYCLES_CONNECT_TIMEOUT", 1.0)
CYCLES_READ_TIMEOUT = envseconds("CYCLES_READ_TIMEOUT", 2.0)
# A real authority takes its time over a key that was quiet for a minute.
CYCLES_COLD_READ_TIMEOUT = envseconds("CYCLES_COLD_READ_TIMEOUT", max(8.0, CYCLES_READ_TIMEOUT))
if CYCLES_COLD_READ_TIMEOUT < CYCLES_READ_TIMEOUT:
    raise ImproperlyConfigured(
        f"CYCLES_COLD_READ_TIMEOUT is {CYCLES_COLD_READ_TIMEOUT}: write at least CYCLES_READ_TIMEOUT, "
        f"{CYCLES_READ_TIMEOUT}."
    )

# The house's account: code outside any tenant buys from it where it says so, and nothing falls back to it.
CYCLES_TENANT, CYCLES_API_KEY = envsubject("CYCLES_TENANT"), envkey("CYCLES_API_KEY")
if bool(CYCLES_TENANT) != bool(CYCLES_API_KEY):
    missing = "CYCLES_API_KEY" if CYCLES_TENANT else "CYCLES_TENANT"
    raise ImproperlyConfigured(
        f"{missing} is not set: the house's account is CYCLES_TENANT and CYCLES_API_KEY together."
    )

# The client's other variables, by its own names. Its feature, where guarded code and plain `@cycles` name none.
CYCLES_APP = envsubject("CYCLES_APP")
DEFAULT_APP = CYCLES_APP or "app"
if _of_each_call := [
    name for name in ("CYCLES_WORKSPACE", "CYCLES_WORKFLOW", "CYCLES_AGENT", "CYCLES_TOOLSET") if envstr(name)
]:
    raise ImproperlyConfigured(
        f"{', '.join(_of_each_call)} cannot be set here, for each call names its own seat, and one for all would move "
        "calls past their limits: unset it, and say it in the call."
    )
# Commits of plain `@cycles` that were not delivered. Our own calls are repeated by their rows.
CYCLES_RETRY_ENABLED = envbool("CYCLES_RETRY_ENABLED", True)
# For an hour and more, every half minute at last: with the client's own five attempts an outage of 16 s left a call
# unpaid until the process was started again.
CYCLES_RETRY_MAX_ATTEMPTS = envint("CYCLES_RETRY_MAX_ATTEMPTS", 200, minimum=1, maximum=1_000_000) or 200
CYCLES_RETRY_INITIAL_DELAY = envseconds("CYCLES_RETRY_INITIAL_DELAY", 0.5)
CYCLES_RETRY_MULTIPLIER = envfactor("CYCLES_RETRY_MULTIPLIER", 2.0)
CYCLES_RETRY_MAX_DELAY = envseconds("CYCLES_RETRY_MAX_DELAY", 30.0)
# At the end of a process. What is left then is in the journal; nobody should wait for it.
CYCLES_RETRY_FLUSH_TIMEOUT = envseconds("CYCLES_RETRY_FLUSH_TIMEOUT", 2.0, or_none=True)
CYCLES_JOURNAL_ENABLED = envbool("CYCLES_JOURNAL_ENABLED", True)
CYCLES_JOURNAL_DIR = envstr("CYCLES_JOURNAL_DIR", str(STATE_DIR / "journal"))

# How long a call waits for money that others hold before it is fitted or refused.
BUDGET_WAIT_SECONDS = envseconds("BUDGET_WAIT_SECONDS", 5.0)

# Formulas in answers become MathML.
CHAT_MATHS = envbool("CHAT_MATHS", False)
# Calls under way of one tenant, in one process.
# Of a model whose context the operator has not said: so many tokens of a question and what was said before it.
CHAT_HISTORY_TOKENS = envint("CHAT_HISTORY_TOKENS", 1_000, minimum=1, maximum=1_000_000) or 1_000
TENANT_STREAMS_MAX = envint("TENANT_STREAMS_MAX", 200, minimum=1, maximum=100_000) or 200
# The most that any API key may ask for, counted for all processes together; its own rates can only be lower.
KEY_RATES = envrates("KEY_RATES")

# Sign-up: workspaces that one address and the whole site may make, and forms that one address may send, right or wrong:
# so many at once, then one each so many seconds. What all trials that are not closed may cost together, in microcents.
SIGN_UP_ADDRESS_RATE = envrate("SIGN_UP_ADDRESS_RATE", "20/60")
SIGN_UP_SITE_RATE = envrate("SIGN_UP_SITE_RATE", "100/6")
SIGN_UP_FORM_RATE = envrate("SIGN_UP_FORM_RATE", "300/2")
TRIAL_POOL = envusd("TRIAL_POOL_USD", "1000")
# Where people top up a workspace's budget, for the refusals that this would help.
TOP_UP_URL = envurl("TOP_UP_URL")
# Whether a workspace that signs up gets its allowance only once its owner's e-mail is confirmed.
SIGNUP_CONFIRM_EMAIL = envbool("SIGNUP_CONFIRM_EMAIL", not is_loopback(BASE_DOMAIN))
refuse_unsendable(base_domain=BASE_DOMAIN, smtp_host=EMAIL_HOST, confirm_email=SIGNUP_CONFIRM_EMAIL)
# Told of each address that its member has shown to be theirs, in that transaction; and what pages say until then.
ON_EMAIL_CONFIRMED = "billing.confirming.on_confirmed"
UNCONFIRMED_BESIDE = "billing.confirming.notice"
# Called with each member who was removed or has left, in that transaction: for what apps of yours keep of them.
ON_MEMBER_GONE: list[str] = []

# How long a deleted workspace can be reopened; then its rows are dropped.
WORKSPACE_PURGE_DAYS = envint("WORKSPACE_PURGE_DAYS", 30, minimum=1, maximum=3_650) or 30

# What /readyz asks, in order; each names what is not ready, or nothing.
READINESS_CHECKS = [
    "tenants.health.database_ready",
    "billing.health.authority_ready",
    "billing.health.keys_ready",
    "chat.health.model_ready",
    "billing.health.demo_ready",
    "billing.health.jobs_ready",
]

# Jobs: an app's are in its tasks.py. What the jobs process calls every few seconds beside them, to settle holds.
PROCRASTINATE_ON_APP_READY = "tenants.jobs.install"
SWEEP = "billing.settlement.sweep"

# The language model.
EMBEDDED_MODEL = "smollm2-135m-instruct"
_HAS_COMMON_ADDRESS = bool(envstr("LLM_BASE_URL"))
LLM_BASE_URL = envurl("LLM_BASE_URL") or f"http://127.0.0.1:{envport('MODEL_PORT', 8081)}/v1"
LLM_API_KEY = envkey("LLM_API_KEY")
LLM_MODEL = envstr("LLM_MODEL", "" if _HAS_COMMON_ADDRESS else EMBEDDED_MODEL)
if not LLM_MODEL:
    raise ImproperlyConfigured("LLM_MODEL is not set: with LLM_BASE_URL given, name the model to call.")
LLM_PRICES = envprices("LLM_PRICES")
LLM_DIALECT = envdialects("LLM_DIALECT")
if _strangers := LLM_DIALECT.keys() - {LLM_MODEL, *LLM_PRICES}:
    raise ImproperlyConfigured(f"LLM_DIALECT names {sorted(_strangers)}: neither LLM_MODEL nor LLM_PRICES has them.")
MODELS = envmodels(
    "MODELS",
    beside={*LLM_PRICES, EMBEDDED_MODEL} if LLM_MODEL == EMBEDDED_MODEL else LLM_PRICES.keys(),
    has_common_address=_HAS_COMMON_ADDRESS,
)
if not can_chat(MODELS, LLM_MODEL):
    raise ImproperlyConfigured(
        f"LLM_MODEL is {LLM_MODEL!r}: the chat asks it, and its kinds in MODELS are without chat."
    )
if _twice := MODELS.keys() & {*LLM_PRICES, *LLM_DIALECT}:
    raise ImproperlyConfigured(
        f"MODELS names {sorted(_twice)}, and so does LLM_PRICES or LLM_DIALECT: write each once."
    )
# Started by `make run`, and a part of being ready. Not where each model that can be called has an address in MODELS:
# nothing asks the embedded one then, and a site that has none would never be ready.
MODEL_IS_EMBEDDED = not _HAS_COMMON_ADDRESS and (LLM_MODEL not in MODELS or bool(LLM_PRICES))

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s [%(tenant)s] %(message)s"}},
    "filters": {"no_tokens": {"()": "tenants.logs.NoTokens"}, "tenant": {"()": "tenants.logs.WithTenant"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["no_tokens", "tenant"]},
    },
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {
        # A line per HTTP request each: the settled reservation's own line says it all.
        "httpx": {"level": "WARNING"},
        "httpx2": {"level": "WARNING"},
        "httpcore": {"level": "WARNING"},
        "runcycles": {"level": "WARNING"},
        # A warning for each HEAD, whose body Django leaves to the server to drop.
        "gunicorn.http.wsgi": {"level": "ERROR"},
        # Several lines a job, with its arguments.
        "procrastinate": {"level": "WARNING"},
    },
}
