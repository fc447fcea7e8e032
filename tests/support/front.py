"""The front as `make run` has it: the real Caddy with config/Caddyfile, before whatever listens behind it."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Self

from config.env import BASE_DIR
from config.stack.front import Listener, front_command, front_environment
from config.stack.places import make_run_folder
from tests.support.ports import free_port


class Front:
    """`with Front(folder, web=…, plane=…) as front:` listens on `front.port` until the block ends."""

    def __init__(self, folder: Path, *, web: Listener, plane: Listener, by_tls: bool = False, **variables: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        make_run_folder(folder)
        told = front_environment(folder, self.port, web=web, plane=plane)
        self._env = {**os.environ, "FRONT_TRUSTED_PROXIES": "", **told, **variables}
        self._command = front_command()
        self._by_tls = by_tls
        if by_tls:
            # With a certificate of its own making, which this machine is not to trust.
            self._env["FRONT_ADDRESS"] = f"https://localhost:{self.port}"
            config = self._command.index("--config") + 1
            text = Path(self._command[config]).read_text()
            of_a_test = text.replace(
                "\tadmin off\n", "\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n"
            )
            self._command[config] = str(folder / "Caddyfile")
            (folder / "Caddyfile").write_text(of_a_test)

    def __enter__(self) -> Self:
        self._log = (self.folder / "front.log").open("wb")
        self.process = subprocess.Popen(self._command, cwd=BASE_DIR, env=self._env, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 60
        while not self.listens():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def listens(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        if self._by_tls:
            # It listens a moment before it has made its certificate.
            try:
                self.connect_by_tls().close()
            except (ssl.SSLError, ConnectionError):
                return False
        return True

    def connect(self, timeout: float = 5) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def connect_by_tls(self, *protocols: str, timeout: float = 20) -> ssl.SSLSocket:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        trusting.set_alpn_protocols(list(protocols))
        return trusting.wrap_socket(self.connect(timeout), server_hostname="localhost")

    def log(self) -> str:
        return (self.folder / "front.log").read_text(errors="replace")
