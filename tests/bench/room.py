"""What each benchmark of the product stands in: the database's server, a folder, and a made-up model.

Owns bringing them up and taking them away, also after a Ctrl-C or a TERM. Knows no figure.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from config.database import embedded_database
from config.env import state_dir
from tests.bench.cells import Model


@contextmanager
def room() -> Iterator[tuple[Path, Model]]:
    """An empty folder, and the model; both are gone afterwards."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # cleans up, as a Ctrl-C does
    from config.stack.postgres import SharedPostgres

    with ExitStack() as stack:
        if embedded_database():
            stack.enter_context(SharedPostgres(state_dir()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        server = Model()
        stack.callback(server.stop)
        yield folder, server
