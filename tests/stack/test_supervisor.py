"""`make run` from its first line to its last process, over stand-ins for the parts it starts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from config.stack import StackError, children, front, ports, processes
from config.stack.checks import authority_is_embedded
from config.stack.children import Part
from config.stack.places import places_for, run_folder
from config.stack.ports import check_ports
from config.stack.postgres import SharedPostgres, serving_embedded_url
from config.stack.supervisor import get
from tests.stack.conftest import environment, kill_server, run, server, start, wait_until
from tests.support.ports import free_ports

PORTS = ("PORT", "AUTHORITY_RUNTIME_PORT", "AUTHORITY_ADMIN_PORT", "MODEL_PORT")
STACK = ("-m", "tests.stack.stand_in")
STAND_INS = ("model", "authority", "web", "plane", "jobs")


class Stack:
    """A running stack of one STATE_DIR, its output read as it comes."""

    def __init__(self, state: Path, **extra: str) -> None:
        self.state = state
        self.env = environment(state, **dict(zip(PORTS, map(str, free_ports(4)), strict=True)), **extra)
        self.begin()

    @property
    def port(self) -> int:
        return int(self.env["PORT"])

    def begin(self) -> None:
        self.lines: list[str] = []
        self.process = start(*STACK, state=self.state, env=self.env)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(ValueError):
            self.lines += iter(self.process.stdout.readline, "")  # type: ignore[union-attr]

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def until_ready(self) -> Stack:
        wait_until(lambda: "Ctrl-C stops" in self.said or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.said
        # Nobody asks jobs whether it is there yet, so the supervisor does not wait for it.
        wait_until(lambda: all(self.has_begun(part) for part in STAND_INS))
        return self

    def has_begun(self, part: str) -> bool:
        return f"{part} begins" in (self.state / "logs" / f"{part}.log").read_text()

    def end(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(120)
        self._reader.join(60)
        self.process.stdout.close()  # type: ignore[union-attr]
        return code

    def parts(self) -> dict[str, int]:
        return {row["name"]: row["pid"] for row in json.loads((self.state / "processes.json").read_text())}

    def alive(self) -> list[int]:
        """Every process that was started for this STATE_DIR, the server's apart."""
        mine = str(self.state)
        others = {os.getpid(), self.process.pid}
        found = [p.pid for p in processes.table() if processes.environment(p.pid).get("STATE_DIR") == mine]
        return [pid for pid in found if pid not in others]

    def ports_are_free(self) -> bool:
        check_ports({name: int(self.env[name]) for name in PORTS})
        return True


@pytest.fixture
def stack(warm: Path):
    one = Stack(warm)
    yield one
    one.end()
    for pid in one.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def locked(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_it_starts_says_where_and_leaves_nothing_behind(stack):
    stack.until_ready()
    site = f"http://localhost:{stack.env['PORT']}"
    assert site in stack.said
    assert f"http://demo.localhost:{stack.env['PORT']}" in stack.said
    assert f"curl -N {site}/api/chat/ -H 'X-Tenant-ID: demo' -H 'Authorization: Bearer key'" in stack.said
    assert "alice@demo.example  with  pass" in stack.said
    assert locked(stack.state / "supervisor.lock")

    second, said = run(*STACK, state=stack.state, env=stack.env)
    assert (second, said.count("\n")) == (1, 1)
    assert f"already running (pid {stack.process.pid})" in said

    code, said = run("-m", "config.stack.clean", state=stack.state, stdin=subprocess.DEVNULL)
    assert code == 1
    assert "already running" in said

    assert stack.end() == 0
    assert stack.alive() == []
    assert not server(stack.state)
    assert stack.ports_are_free()
    assert not any(locked(path) for path in stack.state.glob("*.lock"))
    assert not (stack.state / "processes.json").exists()


def test_a_kill_of_the_supervisor_ends_its_parts_and_the_next_run_works(stack):
    stack.until_ready()
    stack.end(signal.SIGKILL)
    wait_until(lambda: stack.alive() == [])
    stack.begin()
    stack.until_ready()


def test_what_a_kill_of_supervisor_and_watchers_left_is_ended_by_the_next_run(stack):
    stack.until_ready()
    watchers = list(stack.parts().values())
    stack.process.send_signal(signal.SIGSTOP)  # so that it cannot clean up after the first of them
    for pid in watchers:
        os.kill(pid, signal.SIGKILL)
    stack.end(signal.SIGKILL)
    left = stack.alive()
    assert left
    stack.begin()
    stack.until_ready()
    assert "ended web, left behind by an earlier run" in stack.said
    assert not set(left) & set(stack.alive())


def kill_part(stack: Stack, part: str, victim: str = "process") -> None:
    watcher = stack.parts()[part]
    wait_until(lambda: any(p.parent == watcher for p in processes.in_group(watcher)))
    process = next(p.pid for p in processes.in_group(watcher) if p.parent == watcher)
    os.kill(watcher if victim == "watcher" else process, signal.SIGKILL)


@pytest.mark.parametrize(
    ("part", "victim"),
    [("model", "watcher"), ("web", "process"), ("plane", "watcher"), ("jobs", "process"), ("front", "process")],
)
def test_a_part_that_dies_is_named_and_comes_back(stack, part, victim):
    stack.until_ready()
    before, others = stack.parts()[part], {name: pid for name, pid in stack.parts().items() if name != part}
    kill_part(stack, part, victim)
    wait_until(lambda: stack.parts()[part] != before)
    wait_until(lambda: get(stack.port, "/readyz")[0] == get(stack.port, "/api/chat/")[0] == 200)
    assert {name: pid for name, pid in stack.parts().items() if name != part} == others
    # What it has printed is read a moment later.
    wait_until(lambda: f"{part} ended by itself (exit code" in stack.said)
    if part != "front":
        assert f"it said last: {part} begins" in stack.said


def test_a_part_that_keeps_dying_rests_longer_each_time(stack):
    stack.until_ready()
    for rest in ("0.5", "1.0", "2.0"):
        before = stack.parts()["jobs"]
        kill_part(stack, "jobs")
        wait_until(lambda before=before: stack.parts()["jobs"] != before)
        wait_until(lambda rest=rest: f"started again in {rest} s" in stack.said)


def test_who_lived_for_a_minute_rests_shortly_again(monkeypatch):
    clock = 0.0
    # Of this module alone: other threads of this process have deadlines.
    monkeypatch.setattr(children, "time", SimpleNamespace(monotonic=lambda: clock))
    part = Part(lambda again: Ended())
    for lived, rest in [(1, 0.5), (1, 1), (59, 2), (1, 4), (1, 8), (1, 16), (1, 30), (1, 30), (60, 0.5), (1, 1)]:
        clock += lived
        assert (part.rest(), part.resting, part.rested) == (rest, True, False)
        clock += rest
        assert part.rested
        part.run(again=True)
        assert not part.resting


class Ended:
    def finish(self) -> None:
        pass


def test_a_part_that_cannot_even_start_stops_everything_and_says_why(warm):
    code, said = run(*STACK, state=warm, env=stack_env(warm, STAND_IN_FAILS="plane"))
    assert code == 1
    assert "plane cannot go on" in said
    assert "plane ended by itself (exit code 3)" in said
    assert not server(warm)


def test_ctrl_c_ends_it_from_the_outside_in(stack):
    stack.until_ready()
    assert stack.end() == 0
    told = (stack.state / "told").read_text().split()
    assert sorted(told[:2]) == ["plane", "web"]
    assert told[2:] == ["jobs", "authority", "model"]


def test_a_stream_under_way_does_not_keep_the_front_for_ever(stack):
    stack.until_ready()
    with socket.create_connection(("127.0.0.1", stack.port)) as reader:
        reader.sendall(b"GET /api/chat/endless/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert reader.recv(100)
        assert stack.end() == 0
    assert stack.alive() == []


def test_only_the_front_listens_where_the_world_may_come(stack):
    stack.until_ready()
    assert get(stack.port, "/readyz")[0] == get(stack.port, "/api/chat/")[0] == 200
    run = run_folder(stack.state)
    assert {path.name for path in run.iterdir()} == {"web.sock", "plane.sock", "front.sock"}
    assert run.stat().st_mode & 0o077 == 0
    stack.end()
    assert not run.exists()


def test_without_a_front_web_and_plane_have_ports_of_their_own(warm):
    (plane,) = free_ports(1)
    stack = Stack(warm, FRONT="off", PLANE_PORT=str(plane))
    try:
        stack.until_ready()
        assert "front" not in stack.parts()
        assert get(stack.port, "/readyz")[0] == get(plane, "/api/chat/")[0] == 200
    finally:
        stack.end()


def test_with_a_database_of_two_roles_web_and_plane_are_not_told_the_owners_password(warm):
    with SharedPostgres(warm) as owner:
        stack = Stack(warm, DATABASE_URL=serving_embedded_url(warm), DATABASE_OWNER_URL=owner)
        try:
            parts = stack.until_ready().parts()
            knows = {name for name, pid in parts.items() if "DATABASE_OWNER_URL" in processes.environment(pid)}
            assert knows == {"authority", "jobs"}
            assert {"web", "plane", "model", "front"} <= parts.keys()
        finally:
            stack.end()


@pytest.mark.parametrize("name", ["long-" * 25, "a {b} c"])
def test_a_path_that_no_socket_and_no_caddyfile_could_have_is_no_obstacle(folder, name):
    stack = Stack(folder / name)
    try:
        stack.until_ready()
        assert len(str(run_folder(stack.state))) < 50
    finally:
        stack.end()
    assert not run_folder(stack.state).exists()


def test_a_missing_caddy_is_one_sentence_before_anything_is_started(state, monkeypatch, tmp_path):
    monkeypatch.setattr(front, "get_path", lambda name: str(tmp_path))
    with pytest.raises(StackError, match="FRONT=off"):
        front.front_command()


def test_a_killed_server_stops_everything_and_is_named(stack):
    stack.until_ready()
    kill_server(stack.state)
    assert stack.process.wait(120) == 1
    stack.end()
    assert "Postgres ended by itself" in stack.said


def test_a_step_that_fails_shows_the_end_of_its_log(warm):
    code, said = run(*STACK, state=warm, env=stack_env(warm, STAND_IN_FAILS="migrate_schemas"))
    assert code == 1
    assert "migrate_schemas cannot go on" in said
    assert "migrations failed with exit code 3" in said
    assert not server(warm)


def stack_env(state: Path, **extra: str) -> dict[str, str]:
    return environment(state, **dict(zip(PORTS, map(str, free_ports(4)), strict=True)), **extra)


def test_a_busy_port_is_one_sentence_that_names_its_variable(state):
    env = stack_env(state)
    with listening(int(env["MODEL_PORT"])):
        code, said = run(*STACK, state=state, env=env)
    assert (code, said.count("\n")) == (1, 1)
    assert env["MODEL_PORT"] in said
    assert "MODEL_PORT" in said
    assert not server(state)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_whoever_could_answer_in_our_place_makes_a_port_busy(host):
    (port,) = free_ports(1)
    with listening(port, host), pytest.raises(StackError, match=f"{port}.*PORT"):
        check_ports({"PORT": port})
    check_ports({"PORT": port})


def test_a_plane_after_the_last_port_is_refused_by_its_variable(state):
    code, said = run(*STACK, state=state, env=stack_env(state) | {"FRONT": "off", "PORT": "65535", "PLANE_PORT": ""})
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("PLANE_PORT would be 65536")


def test_the_port_that_is_offered_in_a_busy_ones_place_is_one():
    with listening(65_500), pytest.raises(StackError, match="PORT=65400"):
        check_ports({"PORT": 65_500})


@pytest.mark.parametrize(("port", "other"), [(80, 8080), (443, 8443)])
def test_the_port_that_is_offered_where_rights_are_missing_needs_none(monkeypatch, port, other):
    monkeypatch.setattr(ports, "_trouble", lambda *_: "needs more rights than this user has")
    with pytest.raises(StackError, match=f"PORT={other}"):
        check_ports({"PORT": port})


@contextlib.contextmanager
def listening(port: int, host: str = "127.0.0.1") -> Iterator[None]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind((host, port))
        except OSError:
            pytest.skip(f"{host} is no address of this machine")
        other.listen()
        yield


def test_two_variables_with_one_port_are_refused():
    (port,) = free_ports(1)
    with pytest.raises(StackError, match="MODEL_PORT and PORT"):
        check_ports({"PORT": port, "MODEL_PORT": port})


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"CYCLES_BASE_URL": "http://cycles.example"}, "CYCLES_ADMIN_URL"),
        ({"CYCLES_ADMIN_URL": "http://cycles.example"}, "CYCLES_BASE_URL"),
        ({"CYCLES_BASE_URL": "http://a.example", "CYCLES_ADMIN_URL": "http://a.example"}, "CYCLES_ADMIN_API_KEY"),
    ],
)
def test_half_an_external_authority_is_refused_and_names_the_other_half(monkeypatch, given, missing):
    for name in ("CYCLES_BASE_URL", "CYCLES_ADMIN_URL", "CYCLES_ADMIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StackError, match=f"^{missing} is not set"):
        authority_is_embedded()


def test_more_threads_than_connections_are_refused(state):
    code, said = run(*STACK, state=state, env=stack_env(state, WEB_WORKERS="10", WEB_THREADS="50"))
    assert (code, said.count("\n")) == (1, 1)
    assert "WEB_THREADS" in said


def test_clean_asks_first_and_deletes_only_what_is_ours(warm):
    (warm / "mine.txt").write_text("keep")
    code, _ = run("-m", "config.stack.clean", state=warm, stdin=subprocess.DEVNULL)
    assert code == 1
    assert places_for(warm).data.exists()
    process = start("-m", "config.stack.clean", state=warm, stdin=subprocess.PIPE)
    said, _ = process.communicate("yes\n", timeout=30)
    assert process.returncode == 0, said
    assert [path.name for path in warm.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kept", [[], ["mine.txt", "t_of_mine"]])
def test_clean_deletes_what_workspaces_uploaded_and_nothing_beside_it(state, kept):
    files = state / "files"
    (files / "t_0123456789abcdef0123").mkdir(parents=True)
    (files / "t_0123456789abcdef0123" / "letter.txt").write_text("of a customer")
    for name in kept:
        (files / name).mkdir()
    process = start("-m", "config.stack.clean", state=state, stdin=subprocess.PIPE)
    said, _ = process.communicate("yes\n", timeout=30)
    assert process.returncode == 0, said
    left = {path.name for path in state.rglob("*") if path.suffix != ".lock"}
    assert left == ({"files", *kept} if kept else set())


def test_clean_deletes_uploads_that_a_link_leads_to_and_leaves_the_link(state, folder):
    (folder / "disk" / "t_0123456789abcdef0123").mkdir(parents=True)
    state.mkdir()
    (state / "files").symlink_to(folder / "disk")
    process = start("-m", "config.stack.clean", state=state, stdin=subprocess.PIPE)
    said, _ = process.communicate("yes\n", timeout=30)
    assert process.returncode == 0, said
    assert (state / "files").is_dir()
    assert not any((folder / "disk").iterdir())
