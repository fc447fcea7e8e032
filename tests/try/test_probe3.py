import gc, time, subprocess, sys, os
import pytest
from chat.calls import complete, stream
from tests.try_.common import *
from tests.try_ import plane_urls
from tests.support.plane import PlaneClient

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture
def prog(workspace, settings, upstream, model):
    settings.PLANE_URLCONF = "tests.try_.plane_urls"
    settings.PLANE_STARTUP = settings.PLANE_SHUTDOWN = None
    plane_urls.KEPT.clear()
    return PlaneClient(headers={"host": workspace.host, "authorization": f"Bearer {workspace.key()}"})


@pytest.mark.parametrize(
    "name",
    [
        "whole",
        "nawait",
        "nawait2",
        "nothing",
        "uses_sync",
        "uses_stream",
        "uses_guarded",
        "nawait_stream",
        "good_stream",
        "naive_stream",
        "lazy_stream",
        "raises",
        "raises_mid",
        "orm",
        "orm_thread",
        "aorm",
        "sync",
    ],
)
def test_views(workspace, prog, name, upstream):
    print()

    def go():
        r = prog.get(f"/api/{name}/")
        return r.status_code, r.content[:300]

    attempt(go)
    say(workspace, name)
    time.sleep(0.2)
    gc.collect()
    print("   kept", plane_urls.KEPT, "spent", upstream.spent, "aborted", upstream.aborted)


@pytest.mark.parametrize("name", ["whole", "good_stream", "naive_stream", "lazy_stream"])
def test_down(workspace, prog, name, upstream):
    upstream.status = 500
    print()

    def go():
        r = prog.get(f"/api/{name}/")
        return r.status_code, r.content[:300]

    attempt(go)
    say(workspace, name + " model 500")
    print("   kept", plane_urls.KEPT)


@pytest.mark.parametrize("name", ["good_stream", "naive_stream", "lazy_stream"])
def test_leaves(workspace, prog, name, upstream):
    upstream.tokens = ["w "] * 40
    upstream.delay_between = 0.04
    print()
    r = prog.get(f"/api/{name}/")
    it = r.streaming_content
    next(it)
    next(it)
    r.close()
    say(workspace, name + " reader leaves", wait=4)
    time.sleep(0.3)
    print("   kept", plane_urls.KEPT, upstream.spent, upstream.aborted)


@pytest.mark.parametrize("name", ["whole", "good_stream", "naive_stream"])
def test_leaves_early(workspace, prog, name, upstream):
    upstream.tokens = ["w "] * 40
    upstream.delay_between = 0.04
    upstream.delay_first = 0.5
    print()
    e = prog.begin("GET", f"/api/{name}/")
    time.sleep(0.2)
    e.leave()
    say(workspace, name + " reader leaves before the first word", wait=4)
    time.sleep(0.3)
    print("   kept", plane_urls.KEPT, upstream.spent, upstream.aborted)


SCRIPT = r"""
import django, os, sys
django.setup()
from tenants.models import Tenant
from tenants.context import tenant_scope
from chat.calls import complete, stream, acomplete
from chat.models import Conversation
from tenants.users.models import User
import time, asyncio
MSG=[{"role":"user","content":"hello"}]
t=Tenant.objects.get(slug=sys.argv[1])
def keep(c):
    Conversation.objects.create(owner_id=User.objects.first().pk, title=sys.argv[2]+":"+c.text[:20])
def slow(c):
    time.sleep(.5); keep(c)
with tenant_scope(t):
    how=sys.argv[2]
    if how=="complete": complete(MSG, keep=keep)
    if how=="stream":
        for w in stream(MSG, keep=keep): pass
    if how=="slow":
        for w in stream(MSG, keep=slow): pass
    if how=="left":
        next(stream(MSG, keep=keep))
    if how=="exit":
        s=stream(MSG, keep=keep); next(s); sys.exit(3)
    if how=="crash":
        s=stream(MSG, keep=keep); next(s); raise RuntimeError
    if how=="asyncio":
        async def f():
            return await acomplete(MSG, keep=keep)
        print(asyncio.run(f()).cost)
"""


@pytest.mark.parametrize("how", ["complete", "stream", "slow", "left", "exit", "crash", "asyncio"])
def test_script(workspace, upstream, model, database_url, authority, settings, how, tmp_path):
    import json
    from chat.models import Conversation

    upstream.tokens = ["w "] * 10
    upstream.delay_between = 0.03
    p = tmp_path / "s.py"
    p.write_text(SCRIPT)
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "config.settings_test",
        "DATABASE_URL": database_url,
        "AUTHORITY_RUNTIME_PORT": authority.runtime_url.rpartition(":")[2],
        "AUTHORITY_ADMIN_PORT": authority.admin_url.rpartition(":")[2],
        "PYTHONPATH": os.getcwd(),
        "LLM_BASE_URL": upstream.base_url,
        "LLM_MODEL": model,
        "LLM_PRICES": json.dumps({model: {"input": 10, "output": 40}}),
    }
    t = time.monotonic()
    r = subprocess.run(
        [sys.executable, str(p), workspace.slug, how], env=env, capture_output=True, text=True, timeout=60
    )
    print()
    print("   rc", r.returncode, f"{time.monotonic() - t:.1f}s", r.stdout[-300:], r.stderr[-600:])
    say(workspace, "script " + how)
    with workspace.scope():
        print("   kept", list(Conversation.objects.values_list("title", flat=True)))


def test_slow_keeps_and_names(workspace, globex, upstream, model, settings):
    import time

    settings.LLM_BASE_URL = upstream.base_url.replace("127.0.0.1", "localhost")
    with workspace.scope():
        for _ in range(8):
            complete(MSG, keep=lambda c: time.sleep(4))
    upstream.close_idle()
    t = time.monotonic()
    print()

    def go():
        with globex.scope():
            return complete(MSG).cost

    time.sleep(0.2)
    attempt(go)
    print(f"   neighbour's answer took {time.monotonic() - t:.1f}")
