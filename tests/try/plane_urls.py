import asyncio
from django.http import JsonResponse, HttpResponse, StreamingHttpResponse
from django.urls import path
from chat.calls import acomplete, astream, complete, stream
from billing.guard import guarded
from tenants.context import current_tenant

MSG = [{"role": "user", "content": "hello"}]
KEPT = []


def keep(c):
    KEPT.append((c.text, c.finish_reason, c.cost, current_tenant().slug))


async def whole(request):
    c = await acomplete(MSG, app="haiku", user_id=request.asker.user_id, key_id=request.asker.key_id, keep=keep)
    return JsonResponse({"text": c.text, "cost": c.cost})


async def nawait(request):
    return JsonResponse({"c": acomplete(MSG)})


async def nawait2(request):
    return inner(request)


async def inner(request):
    return JsonResponse({})


async def nothing(request):
    pass


async def uses_sync(request):
    return JsonResponse({"t": complete(MSG).text})


async def uses_stream(request):
    return StreamingHttpResponse(stream(MSG))


async def uses_guarded(request):
    return JsonResponse({"t": guarded(10)(lambda: 1)()})


async def nawait_stream(request):
    a = astream(MSG)

    async def w():
        async for x in a.events():
            yield "".join(x or [])

    return StreamingHttpResponse(w())


async def good_stream(request):
    a = await astream(MSG, app="haiku", keep=keep)

    async def w():
        try:
            async for x in a.events():
                yield "".join(x or [])
        finally:
            a.leave()

    return StreamingHttpResponse(w())


async def naive_stream(request):
    a = await astream(MSG, app="haiku", keep=keep)

    async def w():
        async for x in a.events():
            yield "".join(x or [])

    return StreamingHttpResponse(w())


async def lazy_stream(request):
    async def w():
        a = await astream(MSG, app="haiku", keep=keep)
        async for x in a.events():
            yield "".join(x or [])

    return StreamingHttpResponse(w())


async def raises(request):
    a = await astream(MSG, app="haiku", keep=keep)
    raise ZeroDivisionError


async def raises_mid(request):
    a = await astream(MSG, app="haiku", keep=keep)

    async def w():
        async for x in a.events():
            yield "".join(x or [])
            raise ZeroDivisionError

    return StreamingHttpResponse(w())


async def orm(request):
    from tenants.users.models import User

    return HttpResponse(User.objects.count())


async def orm_thread(request):
    from asgiref.sync import sync_to_async
    from tenants.users.models import User
    from django.db import connection

    def f():
        try:
            return [current_tenant().slug, list(User.objects.values_list("email", flat=True))]
        finally:
            connection.close()

    return JsonResponse({"u": await asyncio.to_thread(f)})


async def aorm(request):
    from tenants.users.models import User

    return JsonResponse({"n": await User.objects.acount()})


def sync(request):
    return HttpResponse("x")


from chat.async_api import router
from tenants.api import Api

urlpatterns = [
    path(f"api/{f.__name__}/", f)
    for f in (
        whole,
        nawait,
        nawait2,
        nothing,
        uses_sync,
        uses_stream,
        uses_guarded,
        nawait_stream,
        good_stream,
        naive_stream,
        lazy_stream,
        raises,
        raises_mid,
        orm,
        orm_thread,
        aorm,
        sync,
    )
]
