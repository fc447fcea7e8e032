"""Serves the embedded model, OpenAI-compatible, until it is told to stop.

    python -m chat.local_model --host 127.0.0.1 --port 8081 --model-dir .local/model

Owns finding the file, the port and the signals; the serving is llama.cpp's. `/health` says 503 while the model
loads and 200 when it answers.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from chat.local_model import NAME
from config.env import envport, state_dir

FILES = "SmolLM2-135M-Instruct*.gguf"
# Four answers at a time on a laptop; one more waits for a free slot. Each has a quarter of the context.
SLOTS = 4
CONTEXT = 8192
# Tokens of a prompt read at one go. Its default, 2048, silences every other answer for as long as a prompt takes.
BATCH = 256
WARNINGS = 2  # llama.cpp's verbosity: what goes wrong, and no lines for each request
STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class CannotServe(Exception):
    """The text is one sentence for the person at the keyboard."""


def main(arguments: list[str]) -> int:
    try:
        options = _options(arguments)
        model = find_model(options.model_dir)
        check_port(options.host, options.port)
        _serve(model, options.host, options.port, options.threads)
    except (CannotServe, ImproperlyConfigured) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chat.local_model", description="Serve the embedded model.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=envport("MODEL_PORT", 8081))
    parser.add_argument("--model-dir", type=Path, default=state_dir() / "model")
    parser.add_argument(
        "--threads", type=int, default=_threads(), help="fewer than cores, where others need them (0: all)"
    )
    return parser.parse_args(arguments)


def _threads() -> int:
    """They wait for each other by spinning: where another program has one's core, the rest burn theirs for nothing. On
    two cores an answer took four times as long beside one busy program (3 s for 0.7), and 1.25 s with a single thread.
    """
    cores = os.cpu_count() or 1
    return max(1, cores - 1) if cores <= 4 else 0


def find_model(folder: Path) -> Path:
    """The model's file, wherever below `folder` its wheel has put it."""
    found = sorted(folder.rglob(FILES))
    if not found:
        raise CannotServe(
            f"There is no {FILES} below {folder}: install it with `make model`, "
            "or set LLM_BASE_URL to use a model that is served elsewhere."
        )
    return found[0]


def check_port(host: str, port: int) -> None:
    """Before a model is loaded for nothing; the server itself would only say that it failed."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As the server does: connections of the last run that wait to be forgotten are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as exc:
        busy = isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE
        what = "is in use by another program" if busy else f"cannot be used ({exc})"
        raise CannotServe(f"Port {port} on {host} {what}: set MODEL_PORT to another one.") from None


def _serve(model: Path, host: str, port: int, threads: int) -> None:
    # Before the server starts its threads, which inherit this: else one of them takes the signal, and nobody hears.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        import xllamacpp
    except ImportError:
        raise CannotServe(
            "The server of the embedded model, xllamacpp, is not installed: run `make run`, or set LLM_BASE_URL."
        ) from None

    params = xllamacpp.CommonParams()
    params.model.path = os.fspath(model)
    params.model_alias = {NAME}
    params.hostnames = [host]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT
    params.n_batch = params.n_ubatch = BATCH
    if threads > 0:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = WARNINGS
    params.ui = False
    # Its default keeps up to 8 GiB of old prompts, of whichever tenant they were.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    # Its default lets every web page in this machine's browser read answers.
    params.cors_origins = f"http://{host}:{port}"
    try:
        server = xllamacpp.Server(params)  # comes back when the model is loaded
    except RuntimeError as exc:
        raise CannotServe(f"The embedded model cannot be served on port {port}: {exc}") from None
    print(f"{NAME} answers on {server.listening_address}", flush=True)
    signal.sigwait(STOP)
    # At once, and not by way of the server's own end, which has answers under way to wait for.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
