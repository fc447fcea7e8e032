"""Keys that were quiet: one call alone goes first, and nobody's patience runs out for another's.

A real authority checks such a key slowly, for each call anew. SlowKeys plays that before the embedded one.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from django.db import connection
from runcycles import cycles
from runcycles.exceptions import CyclesProtocolError

from billing import warmth
from billing.client import current_subject_tenant, default_client, install_default_client, translate
from billing.engine import authority as asked_by_the_engine
from billing.errors import AuthorityUnavailable
from billing.keys import unseal
from billing.warmth import ALONE_AT_ONCE, Doors, Word, doors, name_of
from tests.support.factories import WorkspaceFactory
from tests.support.gate import Gate, SlowKeys, warm
from tests.support.money import assert_books_agree, eventually, is_settled, reservations_of
from tests.support.plane import PlaneResponse

RESERVE = ("POST", "/v1/reservations")


@pytest.fixture
def gate(app, workspace, authority, settings):
    """A proxy before the runtime plane, and every key cold to this process."""
    before = settings.CYCLES_BASE_URL
    with Gate(authority.runtime_url, only=[workspace]) as gate:
        settings.CYCLES_BASE_URL = gate.url
        install_default_client()
        doors.reset()
        yield gate
        settings.CYCLES_BASE_URL = before
        install_default_client()


@pytest.fixture
def impatience(gate, settings):
    """`with impatience():` a call that hangs is given up after 0.6 s, and after 1.2 s under a cold key. For what is to
    hang alone: on a busy machine, a good answer may take as long. What timed out is repeated after a second.
    """
    settings.CYCLES_CONNECT_TIMEOUT, settings.CYCLES_COLD_READ_TIMEOUT = 6.0, 1.0

    @contextmanager
    def block():
        usual = settings.CYCLES_CONNECT_TIMEOUT, settings.CYCLES_READ_TIMEOUT
        plain, its_usual = default_client(), default_client()._patience
        settings.CYCLES_CONNECT_TIMEOUT, settings.CYCLES_READ_TIMEOUT = 0.2, 0.4
        plain._patience = {Word.GO: httpx.Timeout(0.4), Word.ALONE: httpx.Timeout(1.0)}
        yield
        settings.CYCLES_CONNECT_TIMEOUT, settings.CYCLES_READ_TIMEOUT = usual
        plain._patience = its_usual

    return block


def hang(gate, *path):
    """The next request to `path` goes on when the event that this gives is set."""
    first, go_on = [True], threading.Event()

    def act(came):
        if (came.method, came.path) == path and first:
            first.clear()
            go_on.wait(60)

    gate.act = act
    return go_on


def begin(workspace, many):
    """So many calls at once, of which none may go before all stand in the line of their key."""
    name, api = name_of(unseal(workspace.account.sealed_key)), workspace.api()
    others = [doors.turn(bytes([number])) for number in range(ALONE_AT_ONCE)]
    under_way = [api.plane.begin("POST", "/api/chat/", {"prompt": "hello"}) for _ in range(many)]
    assert eventually(lambda: len(doors._lines.get(name, ())) == many)
    for turn in others:
        turn.over(answered=True)
    return under_way


# --- many that wake at once -----------------------------------------------------------------------------------------


def test_twenty_workspaces_that_wake_at_once_are_all_served(gate, upstream, model):
    gate.only = workspaces = [WorkspaceFactory() for _ in range(20)]
    apis = [workspace.api() for workspace in workspaces]
    doors.reset()
    gate.act = keys = SlowKeys(quiet=60.0)

    # Three at once in each, in the plane: 60 checks of 0.4 s on two cores would be 12 s for the last of them.
    under_way = [api.plane.begin("POST", "/api/chat/", {"prompt": "hello"}) for api in apis for _ in range(3)]
    assert [PlaneResponse(exchange).status_code for exchange in under_way] == [200] * 60
    assert keys.paid == 20

    # Quiet again, on both sides.
    doors.reset()
    gate.act = keys = SlowKeys(quiet=60.0, seconds=0.2)

    def summarize(api):
        try:
            return api.summarize("text").status_code
        finally:
            connection.close()

    # Web: a decide on each thread, and the reserve behind it on the engine's loop, by the same table.
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(summarize, apis)) == [200] * 20
    assert keys.paid == 20

    reserves = [came.name for came in gate.asked(*RESERVE)]
    assert len(reserves) == len(set(reserves)) == 80, "something was sent twice"
    for workspace in workspaces:
        assert_books_agree(workspace)


def test_the_others_wait_for_the_first_call_under_a_cold_key_and_are_then_served(gate, workspace, upstream, model):
    go_on = hang(gate, *RESERVE)
    under_way = begin(workspace, 5)
    assert eventually(lambda: gate.asked(*RESERVE))
    time.sleep(0.3)
    assert len(gate.asked(*RESERVE)) == 1
    go_on.set()
    assert [PlaneResponse(exchange).status_code for exchange in under_way] == [200] * 5


def test_those_behind_a_first_call_without_an_answer_are_503_unsent_and_the_next_is_first(
    gate, impatience, workspace, globex, upstream, model, monkeypatch
):
    monkeypatch.setattr(asked_by_the_engine, "COLD_CALLS_AHEAD", 30)  # by themselves they would wait for half a minute
    neighbour, go_on = globex.api(), hang(gate, *RESERVE)
    with impatience():
        started = time.monotonic()
        answers = [PlaneResponse(exchange) for exchange in begin(workspace, 4)]
        took = time.monotonic() - started
    assert {(answer.status_code, answer.json()["error"]) for answer in answers} == {(503, "authority_unavailable")}
    assert took < 25, "those who waited were not told at once"
    assert len(gate.asked(*RESERVE)) == 1
    assert upstream.calls == []
    assert neighbour.chat("hello").status_code == 200
    assert workspace.api().chat("hello").status_code == 200
    go_on.set()
    assert eventually(lambda: {one["status"] for one in reservations_of(workspace)} == {"RELEASED", "COMMITTED"})
    assert eventually(lambda: is_settled(workspace)), workspace.ledger()


def test_a_reader_who_leaves_does_not_shut_the_door_on_the_others(gate, workspace, upstream, model):
    go_on = hang(gate, *RESERVE)
    under_way = begin(workspace, 4)
    assert eventually(lambda: gate.asked(*RESERVE))
    for leaver in under_way[:2]:  # the first, whose request is on its way, and one who waits
        leaver.leave()
    go_on.set()
    assert [PlaneResponse(exchange).status_code for exchange in under_way[2:]] == [200] * 2
    assert eventually(lambda: is_settled(workspace)), workspace.ledger()
    names = [came.name for came in gate.asked(*RESERVE)]
    assert len(names) == len(set(names))
    assert_books_agree(workspace)


def test_a_refused_key_is_warm_as_well(gate, workspace, globex, upstream, model):
    gate.act = lambda came: (401, b'{"error": "UNAUTHORIZED", "message": "KEY_NOT_FOUND"}')
    assert workspace.api().chat("hello").status_code == 503
    assert globex.api().chat("hello").status_code == 200  # as one of an earlier test's, the gate lets it by unseen
    gate.act = lambda came: None
    (key,) = {came.key for came in gate.came}
    assert told(doors.turn(name_of(key))) is Word.GO


def test_after_the_authority_was_away_every_key_is_cold(gate, upstream, model, settings):
    gate.only = workspaces = [WorkspaceFactory() for _ in range(4)]
    there = gate.url
    for workspace in workspaces:
        assert workspace.api().chat("hello").status_code == 200
    # One call finds that out, and not under each key.
    settings.CYCLES_BASE_URL = "http://127.0.0.1:9"
    assert workspaces[0].api().chat("hello").status_code == 503
    settings.CYCLES_BASE_URL, settings.CYCLES_CONNECT_TIMEOUT, settings.CYCLES_READ_TIMEOUT = there, 0.5, 0.5
    gate.act = SlowKeys(quiet=60.0, cores=1)  # started anew
    under_way = [one.api().plane.begin("POST", "/api/chat/", {"prompt": "hello"}) for one in workspaces]
    assert [PlaneResponse(exchange).status_code for exchange in under_way] == [200] * 4


def test_plain_cycles_notices_as_well_that_the_authority_is_away(gate, workspace, settings):
    warm(workspace)
    name = name_of(gate.came[0].key)
    assert told(doors.turn(name)) is Word.GO
    settings.CYCLES_BASE_URL = "http://127.0.0.1:9"
    install_default_client()
    assert default_client().get_reservation(f"{workspace.account.subject_tenant}~unknown").status == 503
    with doors.turn(name) as turn:
        assert turn.wait(20) is Word.ALONE


# --- nothing at once after a time-out -------------------------------------------------------------------------------


def test_a_reserve_that_timed_out_is_repeated_only_when_the_authority_may_be_done_with_it(
    gate, impatience, workspace, upstream, model
):
    warm(workspace)
    api, go_on = workspace.api(), hang(gate, *RESERVE)
    began = time.monotonic()
    with impatience():
        refused = api.chat("hello")
    assert (refused.status_code, refused.json()["error"]) == (503, "authority_unavailable")
    go_on.set()
    assert eventually(lambda: len(gate.asked(*RESERVE)) == 2)
    assert gate.asked(*RESERVE)[1].at - began > 0.6 + 0.9, "repeated at once"
    assert eventually(lambda: [one["status"] for one in reservations_of(workspace)] == ["RELEASED"])
    assert eventually(lambda: is_settled(workspace)), workspace.ledger()
    assert upstream.calls == []


def hang_once_at_a_commit(gate):
    """The first commit goes on when the event is set. Gives when each has come, too."""
    commits, go_on = [], threading.Event()

    def act(came):
        if came.path.endswith("/commit"):
            commits.append(came.at)
            if len(commits) == 1:
                go_on.wait(60)

    gate.act = act
    return commits, go_on


def test_a_commit_that_timed_out_is_not_repeated_at_once(gate, impatience, workspace, upstream, model):
    warm(workspace)
    commits, go_on = hang_once_at_a_commit(gate)
    upstream.last_word_after = threading.Event()
    exchange = workspace.api().plane.begin("POST", "/api/chat/", {"prompt": "hello"})
    assert upstream.wait_until(lambda up: up.calls, 20)
    with impatience():
        began = time.monotonic()
        upstream.last_word_after.set()
        assert PlaneResponse(exchange).status_code == 200
        assert eventually(lambda: len(commits) == 2)
    assert commits[1] - began > 0.6 + 0.9
    go_on.set()
    assert_books_agree(workspace)


def plain(act=lambda: "ok"):
    @cycles(estimate=700, actual=lambda r: 600, action_kind="test", action_name="plain", tenant=current_subject_tenant)
    def call():
        return act()

    return call


def test_plain_cycles_sends_a_create_that_timed_out_once_and_its_caller_hears_of_it(gate, impatience, workspace):
    warm(workspace)
    call, go_on = plain(), hang(gate, *RESERVE)
    with workspace.scope(), impatience(), pytest.raises(CyclesProtocolError) as refused:
        call()
    error = translate(refused.value)
    assert type(error) is AuthorityUnavailable
    go_on.set()
    assert eventually(lambda: reservations_of(workspace))
    time.sleep(1.2)  # as long as a repeat would take that comes later
    assert len(gate.asked(*RESERVE)) == 1
    (held,) = reservations_of(workspace)
    assert held["status"] == "ACTIVE"  # until its lease ends, for nobody knows of it
    with workspace.scope():
        assert call() == "ok"


def test_plain_cycles_repeats_a_commit_that_timed_out_later(gate, impatience, workspace):
    commits, go_on = hang_once_at_a_commit(gate)
    with ExitStack() as stack:
        began = []

        def act():
            began.append(time.monotonic())
            stack.enter_context(impatience())
            return "ok"

        with workspace.scope():
            assert plain(act)() == "ok"
        assert eventually(lambda: len(commits) == 2)
    assert commits[1] - began[0] > 0.4 + 0.9
    go_on.set()
    assert eventually(lambda: workspace.ledger()["spent"] == 600)


# --- the lines themselves -------------------------------------------------------------------------------------------


def told(turn):
    return turn.word.result() if turn.word.done() else None


def test_one_goes_alone_and_its_answer_lets_the_others_go():
    line = Doors()
    first, second, third = (line.turn(b"a") for _ in range(3))
    assert [told(turn) for turn in (first, second, third)] == [Word.ALONE, None, None]
    first.over(answered=True)
    assert [told(turn) for turn in (second, third, line.turn(b"a"))] == [Word.GO] * 3


def test_without_an_answer_the_others_are_told_and_the_next_to_come_is_first():
    line = Doors()
    first, second = line.turn(b"a"), line.turn(b"a")
    first.over(answered=False)
    assert told(second) is Word.NO
    assert told(line.turn(b"a")) is Word.ALONE
    second.over(answered=True)  # of a turn that is over: it must not speak for the new first
    first.over(answered=False)
    assert told(line.turn(b"b")) is Word.ALONE


def test_whoever_leaves_hands_on_wherever_it_stood():
    line = Doors()
    busy = [line.turn(bytes([n])) for n in range(ALONE_AT_ONCE)]
    waits, heir, late = line.turn(b"a"), line.turn(b"a"), line.turn(b"b")
    with waits:  # before it might go
        pass
    busy[0].over(answered=True)
    assert (told(heir), told(late)) == (Word.ALONE, None)
    heir2 = line.turn(b"a")
    with pytest.raises(KeyError), heir:  # on its way
        raise KeyError
    assert told(heir2) is Word.ALONE
    with heir2:
        pass
    assert told(late) is Word.ALONE


def test_only_a_few_cold_keys_are_at_the_authority_at_once():
    line = Doors()
    turns = [line.turn(bytes([n])) for n in range(20)]
    for done in range(20):
        assert sum(turn.word.done() for turn in turns) == min(20, done + ALONE_AT_ONCE)
        turns[done].over(answered=done % 2 == 0)


def test_a_turn_that_never_ends_keeps_no_door_shut(monkeypatch):
    line = Doors()
    monkeypatch.setattr(warmth, "LOST_AFTER_SECONDS", -60.0)
    lost = [line.turn(bytes([n])) for n in range(ALONE_AT_ONCE)]
    monkeypatch.undo()
    behind = line.turn(bytes([0]))
    waits = line.turn(b"a")
    assert (told(behind), told(waits)) == (Word.ALONE, Word.ALONE)
    for turn in lost:  # it comes to an end after all
        turn.over(answered=False)
    assert line._alone == {behind, waits}


def test_a_key_that_is_quiet_is_cold_again_and_only_so_many_are_kept(monkeypatch):
    line = Doors()
    monkeypatch.setattr(warmth, "KEPT", 2)
    for name in (b"a", b"b", b"c"):
        line.turn(name).over(answered=True)
    assert [told(line.turn(name)) for name in (b"c", b"b", b"a")] == [Word.GO, Word.GO, Word.ALONE]
    monkeypatch.setattr(warmth, "WARM_SECONDS", 0.0)
    line.turn(b"c").over(answered=True)
    assert told(line.turn(b"c")) is Word.ALONE


def test_a_thousand_threads_that_come_and_go_leave_no_door_shut():
    line = Doors()

    def come(number):
        with line.turn(bytes([number % 7])) as turn:
            word = turn.wait(0.001 if number % 3 == 0 else 5)
            if word is not Word.NO and number % 5:
                turn.over(answered=number % 2 == 0)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(come, range(1_000)))
    assert (line._lines, line._alone, list(line._waiting)) == ({}, set(), [])
