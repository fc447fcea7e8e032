"""Plays a recorded scenario over HTTP and holds each answer to its pattern. Knows the notation, nothing of budgets.

A pattern is JSON. Where it says `{{name}}` a value bound earlier must stand; where it says `<kind>` something of that
kind, chosen by the server; everything else must be equal, type and all.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

RECORDED = Path(__file__).parent / "recorded"
SEEN_HEADERS = (
    "content-type", "retry-after", "allow", "x-cycles-tenant", "x-ratelimit-remaining", "x-ratelimit-reset",
    "x-request-id", "x-cycles-trace-id", "x-cycles-cascade-status",
)  # fmt: skip
DAY_MS = 86_400_000
_HEX = "[0-9a-f]"
_ID = "[0-9a-f-]{16}"
_INSTANT = r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z"
KINDS = {
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "hex32": f"{_HEX}{{32}}",
    "iso": _INSTANT,
    "iso+90d": _INSTANT,
    "key_id": f"key_{_ID}",
    "key_secret": "cyc_live_[A-Za-z0-9_-]{32}",
    "key_prefix": "cyc_live_[A-Za-z0-9_-]{5}",
    "pol_id": f"pol_{_ID}",
    "whsub_id": f"whsub_{_ID}",
    "evt_id": "evt_(?:test_)?[0-9a-f-]{12,16}",
    "log_id": f"log_{_ID}",
    "del_id": f"del_{_ID}",
    "replay_id": f"replay_{_HEX}{{12}}",
    "webhook_secret": "whsec_[A-Za-z0-9_-]{43}",
    "cursor": ".+",
    "text": ".+",
}
_BOUND = re.compile(r"\{\{(\w+)([+-]\d+)?\}\}")
_MARK = re.compile(r"(\{\{\w+(?:[+-]\d+)?\}\}|<[a-z0-9_+]+>)")
_DUE = re.compile(r"<ms(?:\+(\d+))?>")

StoreHook = Callable[[Mapping[str, Any]], None]
Watch = Callable[[str, httpx.Response], list[str]]


class Unbound(Exception):
    """A step needs a value that no earlier answer gave."""


@dataclass
class Report:
    """What became of one scenario: how many pairs fit, where the others differ, and what nobody had announced."""

    name: str
    fitted: list[int] = field(default_factory=list)
    differing: dict[int, str] = field(default_factory=dict)
    unannounced: dict[int, str] = field(default_factory=dict)


@dataclass
class Play:
    """One scenario on one connection, with the values bound on the way."""

    scenario: Mapping[str, Any]
    planes: Mapping[str, str]
    admin_key: str
    store: StoreHook
    watch: Watch
    bound: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Report:
        report = Report(self.scenario["name"])
        self.bound = {"run": uuid.uuid4().hex[:8], "admin_key": self.admin_key}
        for name, template in self.scenario["vars"].items():
            self.bound[name] = self.filled(template)
        with httpx.Client(timeout=60) as client:
            for number, step in enumerate(self.scenario["steps"]):
                if "wait_s" in step:
                    time.sleep(step["wait_s"])
                elif "store" in step:
                    self.store(self.filled(step["means"]))
                else:
                    self._exchange(client, step, number, report)
        return report

    def _exchange(self, client: httpx.Client, step: Mapping[str, Any], number: int, report: Report) -> None:
        try:
            answer = self._send(client, step["request"])
        except (Unbound, httpx.HTTPError) as error:
            report.differing[number] = f"no answer: {type(error).__name__} {error}"
            return
        if strange := self.watch(step["request"]["plane"], answer):
            report.unannounced[number] = "; ".join(strange)
        if faults := self._compare(step, answer):
            report.differing[number] = "; ".join(faults[:4])
        else:
            report.fitted.append(number)

    def _compare(self, step: Mapping[str, Any], answer: httpx.Response) -> list[str]:
        wanted = step["response"]
        body = _parsed(answer)
        comparison = Comparison(self, frozenset(step.get("unordered", ())))
        faults = (
            [] if answer.status_code == wanted["status"] else [f"status {answer.status_code}, not {wanted['status']}"]
        )
        faults += comparison.faults(wanted["headers"], _headers(answer), "headers")
        faults += comparison.faults(wanted["body"], body, "")
        for name, place in step.get("bind", {}).items():
            try:
                self.bound[name] = _at(body, place)
            except (KeyError, IndexError, TypeError, ValueError):
                faults.append(f"{place}: nothing to bind")
        return faults

    def _send(self, client: httpx.Client, request: Mapping[str, Any]) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if "raw" in request or "body" in request else {}
        given = self.filled(request.get("headers", {}))
        headers = {**({} if any(name.lower() == "content-type" for name in given) else headers), **given}
        content = None
        if "raw" in request:
            content = self.filled(request["raw"]).encode()
        elif "body" in request:
            content = json.dumps(self.filled(request["body"]), ensure_ascii=False).encode()
        url = self.planes[request["plane"]] + self.filled(request["path"])
        return client.request(request["method"], url, headers=headers, content=content)

    def filled(self, value: Any) -> Any:
        """The same value with what is bound in place of its names."""
        if isinstance(value, str):
            return _BOUND.sub(lambda found: str(self.value(found)), value)
        if isinstance(value, dict):
            return {self.filled(key): self.filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.filled(inner) for inner in value]
        return value

    def value(self, found: re.Match[str]) -> Any:
        if found[1] not in self.bound:
            raise Unbound(found[1])
        return self.bound[found[1]] + int(found[2]) if found[2] else self.bound[found[1]]


@dataclass(frozen=True)
class Comparison:
    """Holds one answer to one pattern; lists every place where it does not fit."""

    play: Play
    unordered: frozenset[str]

    def faults(self, wanted: Any, got: Any, place: str, beside: Mapping[str, Any] | None = None) -> list[str]:
        if wanted == "<any>":
            return []
        if isinstance(wanted, dict) and isinstance(got, dict):
            return self._in_object({self.play.filled(k): v for k, v in wanted.items()}, got, place)
        if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
            if re.sub(r"\.\d+(?=\.|$)", "", place) in self.unordered:
                return self._in_any_order(wanted, got, place)
            pairs = enumerate(zip(wanted, got, strict=True))
            return [fault for i, (w, g) in pairs for fault in self.faults(w, g, f"{place}.{i}", beside)]
        if isinstance(wanted, str) and self._fits(wanted, got, beside or {}):
            return []
        if not isinstance(wanted, str) and type(wanted) is type(got) and wanted == got:
            return []
        return [f"{place or 'body'}: {str(got)[:200]!r}, not {str(wanted)[:200]!r}"]

    def _in_object(self, wanted: dict[str, Any], got: dict[str, Any], place: str) -> list[str]:
        faults = []
        for key in {**wanted, **got}:
            at = f"{place}.{key}" if place else key
            if key not in got:
                faults.append(f"{at}: missing")
            elif key not in wanted:
                faults.append(f"{at}: {str(got[key])[:80]!r} is too much")
            else:
                faults += self.faults(wanted[key], got[key], at, got)
        return faults

    def _in_any_order(self, wanted: list[Any], got: list[Any], place: str) -> list[str]:
        """Give each row a pattern of its own. A row may have to cede its pattern, so that a loose pattern does not
        take the only row that a strict one fits."""
        fitting = [[j for j, g in enumerate(got) if not self.faults(w, g, place)] for w in wanted]
        taken: dict[int, int] = {}

        def seat(pattern: int, tried: set[int]) -> bool:
            for row in fitting[pattern]:
                if row not in tried:
                    tried.add(row)
                    if row not in taken or seat(taken[row], tried):
                        taken[row] = pattern
                        return True
            return False

        lost = [i for i in range(len(wanted)) if not seat(i, set())]
        spare = [str(g)[:400] for j, g in enumerate(got) if j not in taken]
        return [f"{place}.{i}: none is {str(wanted[i])[:400]}, left over: {spare}" for i in lost]

    def _fits(self, wanted: str, got: Any, beside: Mapping[str, Any]) -> bool:
        if isinstance(got, bool) or not isinstance(got, str | int):
            return False
        try:
            return self._fits_text(wanted, got) if isinstance(got, str) else self._fits_number(wanted, got, beside)
        except Unbound:
            return False

    def _fits_text(self, wanted: str, got: str) -> bool:
        pattern, kinds = "", []
        for part in _MARK.split(wanted):
            if name := _BOUND.fullmatch(part):
                pattern += re.escape(str(self.play.value(name)))
            elif part[:1] == "<" and part[1:-1] in KINDS:
                pattern += f"({KINDS[part[1:-1]]})"
                kinds.append(part[1:-1])
            else:
                pattern += re.escape(part)
        found = re.fullmatch(pattern, got, re.DOTALL)
        return found is not None and all(map(_timely, kinds, found.groups()))

    def _fits_number(self, wanted: str, got: int, beside: Mapping[str, Any]) -> bool:
        if name := _BOUND.fullmatch(wanted):
            return bool(got == self.play.value(name))
        if wanted == "<int>":
            return True
        now = time.time() * 1000
        if wanted == "<ttl>":
            due = beside.get("expires_at_ms")
            return got >= 0 and (due is None or abs(due - now - got) < 10_000)
        if found := _DUE.fullmatch(wanted):
            return abs(got - now - int(found[1] or 0)) < (10_000 if found[1] else DAY_MS)
        return False


def load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _timely(kind: str, text: str) -> bool:
    """An instant is of today, or ninety days ahead where the pattern says so."""
    if not kind.startswith("iso"):
        return True
    moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+Z$", r"\1Z", text))
    ahead_ms = (moment - datetime.now(UTC)).total_seconds() * 1000
    return abs(ahead_ms) < DAY_MS if kind == "iso" else abs(ahead_ms - 90 * DAY_MS) < 600_000


def _at(body: Any, place: str) -> Any:
    for part in place.split("."):
        body = body[int(part)] if isinstance(body, list) else body[part]
    return body


def _parsed(answer: httpx.Response) -> Any:
    try:
        return json.loads(answer.content.decode())
    except ValueError:
        return answer.text


def _headers(answer: httpx.Response) -> dict[str, str]:
    """Those worth comparing: the media type without its parameters, the methods of Allow in one order."""
    headers = {name: answer.headers[name] for name in SEEN_HEADERS if name in answer.headers}
    if "content-type" in headers:
        headers["content-type"] = headers["content-type"].partition(";")[0].strip()
    if "allow" in headers:
        headers["allow"] = ", ".join(sorted(method.strip() for method in headers["allow"].split(",")))
    return headers
