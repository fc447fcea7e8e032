"""`make bench-chat` and `make bench-api`: what a paid call costs here, beside a direct one and an earlier commit.

Starts a made-up model, the product of this checkout (`now`) and that of an earlier commit (`base`), each by its own
supervisor with a database and an authority of its own, and asks them in turn. After each cell the books are compared
with what the model says it sold. It writes two databases and a temporary folder, and removes them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from config.database import embedded_database
from config.env import state_dir
from tests.bench.authority import own_database
from tests.bench.cells import ROOT, Cell, Model, Outcome, Sizes, direct, measure
from tests.bench.chunks import measured
from tests.bench.counts import count
from tests.bench.many import grow
from tests.bench.room import room
from tests.bench.stacks import Stack, checkout_of

BASE = "3433650"
CELLS = [
    *(f"plain:{connections}" for connections in (1, 8, 32, 200)),
    *("plain+session:1", "plain+follow:8", "plain+pages:1"),
    *(f"stream:{connections}" for connections in (1, 4, 32)),
    "slow:2000",
]
QUICK = ["plain:1", "plain:32", "stream:4"]
BASE_SLOW = 48  # a thread each, of 64: more would only wait
WARM_UP = [Cell.parse("plain:48"), Cell.parse("stream:8")]
PARTS = ("front", "plane", "web", "jobs", "authority", "postgres")
# What this checkout aims at, as a ratio to the base of the same run; each of one cell.
Figure = Callable[[Outcome, Outcome], float]
Aims = list[tuple[str, str, Figure, str, float]]


def all_cpu(one: Outcome, _: Outcome) -> float:
    return one.all_cpu


def per_second(one: Outcome, _: Outcome) -> float:
    return one.per_second


def added_p50(one: Outcome, bare: Outcome) -> float:
    return float(one.tally["p50"] - bare.tally["p50"])


AIMS: Aims = [
    ("CPU of all parts, plain", "plain:1", all_cpu, "≤", 0.24),
    ("CPU of all parts, plain", "plain:8", all_cpu, "≤", 0.24),
    ("CPU of all parts, 20 chunks", "stream:4", all_cpu, "≤", 0.24),
    ("calls/s", "plain:32", per_second, "≥", 4.5),
    ("added p50", "plain:1", added_p50, "≤", 0.22),
]
# /v1, beside the base's /api/chat/: at the base it is that call.
API_CELLS = ["plain+v1:1", "plain+v1:8", "plain+v1:32", "stream+v1:4", "slow+v1:2000"]
API_QUICK = ["plain+v1:1", "plain+v1:32", "stream+v1:4"]
API_AIMS: Aims = [
    ("CPU of all parts, plain", "plain+v1:1", all_cpu, "≤", 0.14),
    ("CPU of all parts, plain", "plain+v1:8", all_cpu, "≤", 0.14),
    ("CPU of all parts, 20 chunks", "stream+v1:4", all_cpu, "≤", 0.14),
    ("calls/s", "plain+v1:32", per_second, "≥", 9),
    ("added p50", "plain+v1:1", added_p50, "≤", 0.14),
]
API_OVER = 10.0  # seconds in which the slow streams of /v1 come
FIRST_BYTES = 2_000.0  # ms, of the slowest but one in a hundred of them
STREAMS_MEGABYTES = 250  # of the plane, with 2,000 of them


def main() -> None:
    options = parse_arguments()
    with room() as (folder, server), ExitStack() as stack:
        stacks = [stack.enter_context(started(name, options, folder, server)) for name in options.stacks]
        Run(options, stacks, server).all()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Paid chats: added time, CPU, memory, and whether the books are right."
    )
    parser.add_argument("--cell", nargs="+", help=f"kind[+session|follow|pages]:connections ({' '.join(CELLS)})")
    parser.add_argument("--only", choices=["base", "now"], help="one of the two")
    parser.add_argument("--no-base", action="store_const", dest="only", const="now")
    parser.add_argument("--base", default=BASE, help=f"the commit to compare with ({BASE})")
    parser.add_argument("--now", type=Path, default=ROOT, help="the checkout to measure (this one)")
    parser.add_argument("--plane", action="store_true", help="a plane of our own for `now`, asked without a front")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="variables for `now`")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one cell (4)")
    parser.add_argument("--repeat", type=int, default=3, help="times each cell; medians are shown (3)")
    parser.add_argument("--chunks", type=int, default=4, help="that the model writes for a plain call (4)")
    parser.add_argument("--workspaces", type=int, default=10, help="that call in turn (10)")
    parser.add_argument("--tenants", type=int, default=3000, help="for the last cell; 0: leave it out (3000)")
    parser.add_argument("--counts", choices=["no", "yes", "list"], default="yes", help="of SQL and HTTP, a call (yes)")
    parser.add_argument("--api", action="store_true", help="/v1, beside /api/chat/ of both")
    parser.add_argument("--quick", action="store_true", help="a minute or two: few cells, once")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeat, options.counts = min(options.seconds, 3.0), 1, "no"
        options.tenants = 0
    usual = (API_QUICK if options.quick else API_CELLS) if options.api else (QUICK if options.quick else CELLS)
    if options.api:
        options.counts, options.tenants = "no", 0
    options.cells = [Cell.parse(text) for text in options.cell or usual]
    options.stacks = [options.only] if options.only else ["base", "now"]
    return options


@contextmanager
def started(name: str, options: argparse.Namespace, folder: Path, server: Model):
    """One stack with its workspaces, warm: every thread and pool has been used."""
    print(f"starting {name} …", file=sys.stderr, flush=True)
    checkout = checkout_of(ROOT, options.base, folder) if name == "base" else options.now.resolve()
    more = dict(pair.split("=", 1) for pair in options.set) if name == "now" else {}
    plane = options.plane and name == "now"
    with own_database() as url, Stack(name, checkout, url, folder, server.port, plane=plane, **more) as stack:
        stack.sign_up(options.workspaces)
        for cell in WARM_UP:
            outcome = measure(cell, Sizes(seconds=2.0), stack, server)
            if outcome.wrong:
                print(f"{name}, warming up: {'; '.join(outcome.wrong)}", file=sys.stderr)
        yield stack


class Run:
    """All cells of one run, in turn at the model, the base and this checkout."""

    def __init__(self, options: argparse.Namespace, stacks: list[Stack], server: Model) -> None:
        self._options, self._stacks, self._server = options, stacks, server
        over = API_OVER if options.api else 0.0
        self._sizes = Sizes(seconds=options.seconds, plain_chunks=options.chunks, slow_over=over)
        self._found: dict[tuple[str, str], Outcome] = {}

    def all(self) -> None:
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; medians of {self._options.repeat} × "
            f"{self._options.seconds:g} s, {self._options.workspaces} workspaces in turn; ms; CPU in ms a call"
        )
        print("+: above the direct call; first: its first byte, p50; with pages beside, CPU is of both")
        print(HEAD)
        for cell in self._options.cells:
            self._cell(cell)
        if not self._options.api:
            print(measured(self._stacks[-1].environment()))
        if self._options.counts != "no":
            for stack in self._stacks:
                self._count(stack)
        if self._options.tenants:
            self._many()
        self._aims()

    def _many(self) -> None:
        """The same call when there are thousands of workspaces, each asked in turn."""
        for stack in self._stacks:
            print(f"growing {stack.name} to {self._options.tenants} workspaces …", file=sys.stderr, flush=True)
            grow(stack, self._options.tenants)
        print(f"with {self._options.tenants} workspaces in turn:")
        self._cell(Cell.parse("plain:1"), keep=False)

    def _count(self, stack: Stack) -> None:
        if not embedded_database():
            print(f"{stack.name}: statements are counted in the embedded server's log alone")
            return
        for cell, counted in count(stack, self._server, state_dir() / "logs" / "postgres.log").items():
            print(f"{cell:17}{stack.name:7}{counted.text()}")
            for wrong in counted.wrong:
                print(f"        wrong: {wrong}")
            if self._options.counts == "list":
                print(counted.listing())

    def _cell(self, cell: Cell, *, keep: bool = True) -> None:
        outcomes: dict[str, list[Outcome]] = {}
        for _ in range(1 if cell.kind == "slow" else self._options.repeat):
            outcomes.setdefault("direct", []).append(direct(cell, self._sizes, self._server))
            for name, stack, asked in self._asked(cell):
                outcomes.setdefault(name, []).append(measure(asked, self._sizes, stack, self._server))
        bare = middle(outcomes["direct"])
        for name, repeated in outcomes.items():
            if keep:
                self._found[name, str(cell)] = middle(repeated)
            print(row(cell, name, middle(repeated), bare), flush=True)
            for wrong in dict.fromkeys(text for one in repeated for text in one.wrong):
                print(f"        wrong: {wrong}")

    def _asked(self, cell: Cell) -> Iterator[tuple[str, Stack, Cell]]:
        """At which stacks, under which names, and what there; beside /v1 stands /api/chat/ of now."""
        for stack in self._stacks:
            fitting = self._fitting(cell, stack)
            if "v1" in fitting.how:
                yield "chat", stack, _as_chat(fitting)
            yield stack.name, stack, fitting

    def _fitting(self, cell: Cell, stack: Stack) -> Cell:
        if stack.name == "base":
            cell = _as_chat(cell)
        if cell.kind == "slow" and stack.name == "base":
            return Cell(cell.kind, min(cell.connections, BASE_SLOW), cell.how)
        return cell

    def _aims(self) -> None:
        for what, cell, figure, sign, aim in API_AIMS if self._options.api else AIMS:
            now, base, bare = (self._found.get((name, cell)) for name in ("now", "base", "direct"))
            if now and base and bare:
                ratio = figure(now, bare) / figure(base, bare)
                verdict(f"{what}, {cell}: now / base", f"{ratio:.3f}", sign, aim, ratio <= aim, ratio >= aim)
        slow = self._found.get(("now", "slow+v1:2000" if self._options.api else "slow:2000"))
        if slow and self._options.api:
            first = slow.tally["first_p99"]
            met = first <= FIRST_BYTES
            verdict("ms to the first byte of 2,000 slow streams, p99", f"{first:.0f}", "≤", FIRST_BYTES, met, not met)
        if slow and (megabytes := slow.memory.get("plane")):
            met = megabytes <= STREAMS_MEGABYTES
            verdict("MB of the plane with 2,000 slow streams", f"{megabytes:.0f}", "≤", STREAMS_MEGABYTES, met, not met)


def _as_chat(cell: Cell) -> Cell:
    return Cell(cell.kind, cell.connections, cell.how - {"v1"})


def verdict(what: str, found: str, sign: str, aim: float, below: bool, above: bool) -> None:
    print(f"{what} = {found}, aim {sign} {aim:g}: {'met' if (below if sign == '≤' else above) else 'NOT met'}")


def middle(outcomes: list[Outcome]) -> Outcome:
    """Medians, figure by figure."""
    tallies = [one.tally for one in outcomes]
    tally = {
        name: statistics.median(one[name] for one in tallies)
        for name, value in tallies[0].items()
        if isinstance(value, int | float)
    }
    return Outcome(
        tally,
        _medians([one.cpu for one in outcomes]),
        _medians([one.memory for one in outcomes]),
        outcomes[0].pages,
        [text for one in outcomes for text in one.wrong],
    )


def _medians(tables: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one.get(name, 0.0) for one in tables) for name in tables[0]}


HEAD = (
    f"{'cell':17}{'at':7}{'calls':>6}{'per s':>7}{'p50':>8}{'p99':>8}{'+p50':>8}{'+p99':>8}{'first':>8}{'CPU':>8}"
    + "".join(f"{name:>10}" for name in PARTS)
    + "  memory MB, pages"
)


def row(cell: Cell, name: str, one: Outcome, bare: Outcome) -> str:
    tally = one.tally
    text = f"{cell!s:17}{name:7}{tally['calls']:6.0f}{one.per_second:7.0f}{tally['p50']:8.2f}{tally['p99']:8.2f}"
    if name == "direct":
        return text + f"{'':16}{tally['first_p50']:8.2f}"
    text += f"{tally['p50'] - bare.tally['p50']:8.2f}{tally['p99'] - bare.tally['p99']:8.2f}{tally['first_p50']:8.2f}"
    text += f"{one.all_cpu:8.2f}" + "".join(
        f"{one.cpu[part]:10.2f}" if part in one.cpu else f"{'':10}" for part in PARTS
    )
    text += "  " + " ".join(f"{part} {one.memory[part]:.0f}" for part in PARTS if part in one.memory)
    if cell.kind == "slow":
        text += f"; first byte p99 {tally['first_p99']:.0f}"
    if one.pages:
        text += f"; pages {one.pages['calls'] / one.pages['seconds']:.0f}/s, p50 {one.pages['p50']:.1f}"
    return text


if __name__ == "__main__":
    main()
