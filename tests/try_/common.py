import time

ASK = {"app": "test", "action_kind": "test.call", "action_name": "unit"}
MSG = [{"role": "user", "content": "hello"}]


def say(w, what, wait=2.0):
    t = time.monotonic()
    while time.monotonic() - t < wait and (w.holds() or w.ledger()["reserved"]):
        time.sleep(0.05)
    l = w.ledger()
    print(
        f"## {what}\n   spent={l['spent']} reserved={l['reserved']} holds={w.holds()} lines={[(x.cost, str(x.outcome), x.overrun, x.app, x.user_id, x.tokens_input, x.tokens_output) for x in w.lines()]} took={time.monotonic() - t:.1f}"
    )


def attempt(f):
    try:
        r = f()
        print("   ->", repr(r)[:400])
        return r
    except BaseException as e:
        c = e.__cause__
        print("   !!", type(e).__name__, str(e)[:400], "| cause", type(c).__name__ if c else None)
