"""The APIs: a tenant's and the bare host's in web, and the plane's beside both. Routers are named as strings, as
everything of an app is here."""

from django.utils.module_loading import import_string

_Api = import_string("tenants.api.Api")
_key = import_string("tenants.api.session_or_key")

# What buys: async operations, served by the plane alone and described by web. PlaneMiddleware has let somebody in
# before ninja is asked, so no `auth` here.
plane_api = _Api(urls_namespace="plane-api", docs_url=None, openapi_url=None)
plane_api.add_router("", "chat.async_api.router")
plane_api.add_router("", "chat.background_api.router")

tenant_api = _Api(
    title="Workspace API",
    description="Chat and summaries, each paid for before it is made. Send `Authorization: Bearer <key>`: "
    "the key says which workspace it opens, also on the bare host; an older one needs `X-Tenant-ID: <workspace>` "
    "there. What a key may do is its scopes and its owner's role together; else 403 says what it `needs`. "
    "Money is whole USD microcents: $1 = 100,000,000.",
    urls_namespace="tenant-api",
    auth=_key,
    beside=plane_api,
)
tenant_api.add_router("", "chat.api.router")
tenant_api.add_router("", "billing.api.router")

# The bare host: sign-up, and the same calls, which there want a key that names its tenant, or X-Tenant-ID. With either
# a request is the tenant's and never comes here, so these routes serve the documentation and say what is missing.
public_api = _Api(
    title="API",
    description="Make a workspace; then chat and summarize in it, each call paid for before it is made. On this host "
    "send `Authorization: Bearer <key>`, which says which workspace it opens; an older key needs "
    "`X-Tenant-ID: <workspace>` beside it. On the workspace's own host a key, or a session. "
    "Money is whole USD microcents: $1 = 100,000,000.",
    urls_namespace="public-api",
    beside=plane_api,
)
public_api.add_router("", "billing.api.public_router")
public_api.add_router("", "chat.api.router", auth=_key)
public_api.add_router("", "billing.api.router", auth=_key)
