"""A server for the tests, and a proxy in front of it that loses answers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PROGRAM = os.environ.get("SESSIONLOG") or shutil.which("sessionlog")
KEY, WORKER_KEY = "a client", "a worker"


def eventually(what: str, condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"it did not come to this: {what}")
        time.sleep(0.02)


class Server:
    """`sessionlog serve` as a process, at the same address after a restart."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        assert PROGRAM is not None
        keys = {"SESSIONLOG_API_KEY": KEY, "SESSIONLOG_WORKER_KEY": WORKER_KEY}
        for _ in range(20):
            self.process = subprocess.Popen(
                [PROGRAM, "serve", "--data", f"{self.folder}/data", "--listen", self.address],
                env={**os.environ, **keys},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert self.process.stdout is not None
            with self.process.stdout as output:
                words = output.readline().split()
            if words:
                self.url = words[-1]
                self.address = self.url.removeprefix("http://")
                return
            self.process.wait()
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def open_streams(self) -> int:
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        values = [line.split()[-1] for line in lines if line.startswith("sessionlog_streams ")]
        return int(float(values[0]))

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)


class Proxy(socketserver.ThreadingTCPServer):
    """Passes requests on, except as `plan` says of the next ones.

    `"lose"` passes the request on and cuts the connection before the answer. Bytes are an answer in
    place of the server's. Each connection carries one request.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, server: Server) -> None:
        self.server = server
        self.plan: list[str | bytes] = []
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), _Passing)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class _Passing(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        request = _received(self.request)
        self.server.requests.append(request.decode(errors="replace"))
        act = self.server.plan.pop(0) if self.server.plan else "pass"
        if isinstance(act, bytes):
            self.request.sendall(act)
            return
        host, port = self.server.server.address.split(":")
        try:
            with socket.create_connection((host, int(port))) as upstream:
                upstream.sendall(request)
                while chunk := upstream.recv(65536):
                    if act == "lose":
                        return
                    self.request.sendall(chunk)
        except OSError:
            pass  # The client or the server has gone.


def _received(connection: socket.socket) -> bytes:
    """Receives one request, and asks for the connection to be closed behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    lengths = [line.split(b":")[1] for line in lines if line.lower().startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += connection.recv(65536)
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*kept, b"Connection: close", b"", body])


def answer(status: str, *headers: str, body: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


@contextmanager
def accepting(*begins: bytes) -> Iterator[str]:
    """A server that sends each connection its bytes, and then nothing more."""
    listener = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept() -> None:
        for begin in begins:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            connection.recv(65536)
            connection.sendall(begin)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for open_socket in [listener, *held]:
            open_socket.close()


@unittest.skipIf(PROGRAM is None, "there is no sessionlog: SESSIONLOG has its path")
class WithServer(unittest.TestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.addCleanup(self.server.end)
        self.proxy = Proxy(self.server)
        self.addCleanup(self.proxy.end)
