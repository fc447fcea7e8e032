"""A mail server on loopback that takes mails, or does what mail servers do instead: refuse, hang, drop."""

from __future__ import annotations

import socketserver
import threading
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Self


class MailServer:
    """`with MailServer() as server:` … `server.mails`. `answers` says what it says in place of its usual reply.

    By command, "DATA" and "." (the end of a mail) among them: {"RCPT": "550 no such user"}. "hang" is silence until the
    block ends, "drip" a sign now and then, "drop" is to hang up.
    """

    def __init__(self, **answers: str) -> None:
        self.answers = {name.replace("end", "."): said for name, said in answers.items()}
        self.mails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.connections = 0
        self._over = threading.Event()

    def __enter__(self) -> Self:
        server = self

        class Conversation(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                server.connections += 1
                if not self.say("CONNECT", "220 mail.test"):
                    return
                while line := self.rfile.readline().decode().strip():
                    command = line.partition(" ")[0].upper()
                    if not self.say(command, {"DATA": "354 go on", "QUIT": "221 bye"}.get(command, "250 ok")):
                        return
                    if command == "RCPT":
                        server.recipients.append(line.partition(":")[2].strip("<>"))
                    if command == "QUIT" or (command == "DATA" and not self.take()):
                        return

            def take(self) -> bool:
                if "DATA" in server.answers:
                    return True
                lines = iter(self.rfile.readline, b".\r\n")
                raw = b"".join(line.removeprefix(b".") for line in lines)
                if "." not in server.answers:
                    server.mails.append(message_from_bytes(raw, policy=policy.default))
                return self.say(".", "250 taken")

            def say(self, command: str, usual: str) -> bool:
                said = server.answers.get(command, usual)
                if said == "hang":
                    server._over.wait()
                while said == "drip" and not server._over.wait(0.05):
                    self.wfile.write(b"2")
                if said in ("hang", "drip", "drop"):
                    return False
                self.wfile.write(f"{said}\r\n".encode())
                return True

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Conversation)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def let_go(self) -> None:
        """Hang up where it hangs."""
        self._over.set()

    def __exit__(self, *exc: object) -> None:
        self.let_go()
        self._server.shutdown()
        self._server.server_close()

    @property
    def settings(self) -> dict[str, Any]:
        """Django's, to send here."""
        return {
            "EMAIL_BACKEND": "tenants.mail.backends.Smtp",
            "EMAIL_HOST": "127.0.0.1",
            "EMAIL_PORT": self.port,
            "EMAIL_USE_TLS": False,
            "EMAIL_USE_SSL": False,
        }

    @property
    def variables(self) -> dict[str, str]:
        """A process's, to send here."""
        return {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(self.port), "SMTP_SECURITY": "none"}
