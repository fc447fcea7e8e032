"""Views of the plane that buy nothing: its frame with nothing in it, and what a builder may get wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from ninja import Router
from psycopg_pool import PoolTimeout

from tenants.api import Api, Body
from tenants.context import current_tenant
from tenants.http import Forbidden, PlaneRequest
from tenants.users.models import User

router = Router()


class Ask(Body):
    prompt: str
    max_tokens: int | None = None


@router.post("/chat/", response=dict[str, Any])
async def ask(request: PlaneRequest, payload: Ask) -> HttpResponse:
    return JsonResponse(who(request))


# At addresses that web serves too, so that both doors can be asked the same.
@router.post("/summarize/")
async def summarize(request: PlaneRequest, payload: Ask) -> HttpResponse:
    return JsonResponse(who(request))


@router.get("/budget/")
async def budget(request: PlaneRequest) -> HttpResponse:
    return JsonResponse(who(request))


def who(request: PlaneRequest) -> dict[str, Any]:
    bound = current_tenant()
    return {
        "tenant": request.tenant.slug,
        "bound": bound.slug if bound else None,
        "user": request.asker.email,
        "by_session": request.asker.by_session,
        "key_id": request.asker.key_id,
        "auth": request.auth.pk,
    }


async def async_orm(request: PlaneRequest) -> HttpResponse:
    """On a thread of Django's, whose connection was never entered."""
    return JsonResponse({"users": await User.objects.acount()})


async def plain(request: PlaneRequest) -> HttpResponse:
    return JsonResponse({**who(request), "body": len(request.body)})


class Words:
    """A stream that owns something. `told` says what became of it, to the test of the same name."""

    told: dict[str, list[str]] = {}

    def __init__(self, name: str) -> None:
        self.said = self.told.setdefault(name, [])
        self._number = 0

    def __aiter__(self) -> Words:
        return self

    async def __anext__(self) -> bytes:
        self._number += 1
        if self._number > 3:
            await asyncio.sleep(3600)
        self.said.append(f"word {self._number} for {current_tenant()}")
        return f"data: {self._number}\n\n".encode()

    async def aclose(self) -> None:
        await asyncio.sleep(0.01)  # a cancelled task could not
        self.said.append("closed")


async def stream(request: PlaneRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(Words(request.GET["name"]), content_type="text/event-stream")


async def told(request: PlaneRequest) -> HttpResponse:
    return JsonResponse(Words.told, safe=False)


async def slow(request: PlaneRequest) -> HttpResponse:
    said = Words.told.setdefault(request.GET["name"], [])
    said.append("asked")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        said.append("cancelled")
        raise
    return HttpResponse()


async def orm(request: PlaneRequest) -> HttpResponse:
    from tenants.users.models import User

    return HttpResponse(User.objects.count())


async def fails(request: PlaneRequest) -> HttpResponse:
    raise {
        "crash": ZeroDivisionError("a secret of the code"),
        "down": psycopg.OperationalError("the connection is closed"),
        "full": PoolTimeout("couldn't get a connection after 5.00 sec"),
        "ours": Forbidden(),
        "djangos": PermissionDenied(),
    }[request.GET["how"]]


async def unfinished(request: PlaneRequest) -> Any:
    return {"await": plain(request), "response": None}[request.GET["forgot"]]


def sync(request: HttpRequest) -> HttpResponse:
    return HttpResponse("from a thread")


api = Api(urls_namespace="null-api", docs_url=None, openapi_url=None)
api.add_router("", router)

urlpatterns = [
    path("api/plain/", plain),
    path("api/stream/", stream),
    path("api/told/", told),
    path("api/slow/", slow),
    path("api/orm/", orm),
    path("api/async-orm/", async_orm),
    path("api/fails/", fails),
    path("api/unfinished/", unfinished),
    path("api/sync/", sync),
    path("api/", api.urls),
]
