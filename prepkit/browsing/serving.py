"""Serving a page to the browsers of this machine alone."""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prepkit.errors import OutputError

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")  # by which a browser of this machine may ask; another name is a page of someone else


class PageServer(ThreadingHTTPServer):
    """A server of one page at 127.0.0.1, which holds its port from the beginning.

    port: 0 for one that is free
    raises OutputError if the port is taken
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.content = b""
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"port {port} cannot be served: {reason}. Choose another one, or none.") from None

    @property
    def address(self) -> str:
        """The page's address."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def serve(self, html: str) -> None:
        """Serve a page until Ctrl-C, which is how a user ends it."""
        self.content = html.encode()
        with self, suppress(KeyboardInterrupt):
            self.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal shows the address alone."""

    def _answer(self, with_content: bool) -> None:
        name = (self.headers.get("Host") or "").rpartition(":")[0] or (self.headers.get("Host") or "")
        if name not in NAMES:
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path.partition("?")[0] != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            if with_content:
                self.wfile.write(self.server.content)
