"""The two APIs: a tenant's, and the bare host's. Routers are named as strings, as everything of an app is here."""

from django.utils.module_loading import import_string

_Api = import_string("tenants.api.Api")

tenant_api = _Api(
    title="Workspace API",
    description="Chat and summaries, each paid for before it is made. Send `Authorization: Bearer <key>`; on the "
    "bare host also `X-Tenant-ID: <workspace>`. Money is whole USD microcents: $1 = 100,000,000.",
    urls_namespace="tenant-api",
    auth=import_string("tenants.api.session_or_key"),
)
tenant_api.add_router("", "chat.api.router")
tenant_api.add_router("", "billing.api.router")

public_api = _Api(
    title="Sign-up API",
    description="Make a workspace. Everything else is on the workspace's own address, or here with X-Tenant-ID.",
    urls_namespace="public-api",
)
public_api.add_router("", "billing.api.public_router")
