"""Asking a model by chat.llm alone, from the thread of a test: no budget, no line, only the connection."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from chat.answer import Answer
from chat.dialect import asked, dialect_for
from chat.errors import ModelFailed
from chat.llm import ModelStream
from tests.support.plane import run


@dataclass
class Paid:
    """Stands for a hold."""

    pays: bool = True


class Asked:
    """`with Asked(messages, max_tokens=5) as asked:` has sent the request; `asked.all()` reads the answer to its end.

    Further options are the dialect's. What breaks is raised; `failure()` gives it instead.
    """

    def __init__(
        self, messages: Any, *, model: str = "test-model", max_tokens: int = 100, pays: bool = True, **dialect: Any
    ) -> None:
        spoken = dataclasses.replace(dialect_for(model), **dialect)

        async def make() -> ModelStream:
            sent = asked(messages, model=model, max_tokens=max_tokens, dialect=spoken)
            return ModelStream(sent, model=model, dialect=spoken, paid_by=Paid(pays))

        self.stream: ModelStream = run(make())

    @property
    def answer(self) -> Answer:
        return self.stream.answer

    def open(self) -> Self:
        run(self.stream.open())
        return self

    def next(self) -> str | None:
        """The next words that are any; None at the end."""

        async def read() -> str | None:
            while (words := await self.stream.read()) == "":
                pass
            return words

        found: str | None = run(read())
        return found

    def all(self) -> str:
        return "".join(iter(self.next, None))

    def cut(self) -> None:
        async def cut() -> None:
            self.stream.cut()

        run(cut())

    def close(self) -> None:
        async def close() -> None:
            self.stream.close()

        run(close())

    def failure(self) -> ModelFailed:
        """What the call breaks with. Fails the test where it does not."""
        try:
            self.open().all()
        except ModelFailed as exc:
            return exc
        finally:
            self.close()
        raise AssertionError("the call did not fail")

    def __enter__(self) -> Self:
        try:
            return self.open()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()
