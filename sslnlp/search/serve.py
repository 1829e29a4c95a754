"""A page on this machine for trying an index: Python's own HTTP server, one search at a time.

Made for one person at their own desk. It answers GET and HEAD, keeps nothing, sends no script, and its pages may load
nothing from anywhere. On a loopback address it answers only to names of this machine, so that a web site whose name
points here (DNS rebinding) gets nothing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sslnlp.errors import UserError
from sslnlp.search import manifest
from sslnlp.search.index import Index
from sslnlp.search.page import (
    DEFAULT_RESULTS,
    MAX_QUERY,
    MAX_RESULTS,
    THUMBNAILS,
    Answer,
    Stopwatch,
    ask,
    clean,
    render,
    watched,
)
from sslnlp.search.thumbnails import KIND

PATIENCE = 10.0
"""Seconds that a client may keep a connection without sending; each has a thread of its own, so no other waits."""
_DRAINED = 4 << 20  # bytes of a refused request that are read and dropped, so that its sender sees the answer
_FIELDS = 20


class Unavailable(UserError):
    """The index cannot be opened (any more)."""


class LiveIndex:
    """An index that follows its folder: what is added or deleted there is found by the next query.

    `open_index` opens it. Queries wait for each other: models and memory maps are used by one thread at a time.
    """

    def __init__(self, path: str | Path, open_index: Callable[[], Index]) -> None:
        self._manifest = Path(path) / manifest.NAME
        self._open_index = open_index
        self._lock = threading.Lock()
        self._reopen()

    def _reopen(self) -> None:
        stamp = self._stamp()  # before opening: what is committed meanwhile is then seen by the next query
        index = self._open_index()
        self._watch: Stopwatch = watched(index)
        self.index, self._opened = index, stamp

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._manifest.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def ask(self, query: str, mode: str | None, k: int) -> Answer:
        """The answer of the index as it is on disk now. Raises UserError for what cannot be asked, `Unavailable` where
        the index cannot be opened."""
        with self._lock:
            if self._stamp() != self._opened:
                self._follow()
            try:
                return ask(self.index, self._watch, query, mode, k)
            except OSError:  # its files were replaced between the look at the folder and the search
                self._follow()
                return ask(self.index, self._watch, query, mode, k)

    def thumbnail(self, name: str) -> bytes | None:
        """The small JPEG of the picture whose id is `name`; None where there is no such picture."""
        with self._lock:
            if self._stamp() != self._opened:
                self._follow()
            row = self.index.documents.row_of.get(name)
            return None if row is None or not self.index.pictures else bytes(self.index.thumbnails[row])

    def _follow(self) -> None:
        try:
            self._reopen()
        except UserError as error:
            raise Unavailable(str(error)) from error


class Server(ThreadingHTTPServer):
    """Serves `live` at (host, port); port 0 takes a free one. Raises UserError for an address that cannot be had."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, live: LiveIndex, name: str, host: str = "127.0.0.1", port: int = 8765) -> None:
        self.live, self.name = live, name
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__((str(address[0]), port), Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot serve at {host}, port {port}: {why}; choose others with --host and --port"
            ) from error
        ip = ipaddress.ip_address(str(self.server_address[0]))
        self.loopback = ip.is_loopback
        self.hosts = {"localhost", "127.0.0.1", "::1", str(ip), host.lower()}
        style = re.search("<style>(.*)</style>", self.page(), re.DOTALL)
        assert style is not None
        self.style_hash = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()

    def server_bind(self) -> None:
        # Not HTTPServer's own, which asks the network for this machine's name and may wait for it.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host, port = str(self.server_address[0]), self.server_address[1]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{port}/"

    def page(self, **shown: Any) -> str:
        """The page about this index."""
        index = self.live.index
        mode = shown.pop("mode", None)
        known = mode if mode in index.modes else index.modes[-1]
        return render(
            name=self.name,
            documents=len(index.documents),
            pictures=index.pictures,
            modes=index.modes,
            mode=known,
            **shown,
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """`/` is the page, `/api/search` the same as JSON; both take `q`, `mode` and `k`. `/thumbnail` takes an `id`."""

    server: Server
    server_version, sys_version = "sslnlp", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        """Answer a request, or say why not."""
        if not self._named_here():
            said = "This server answers only to names of its own machine.\n"
            return self._send(403, said, "text/plain; charset=utf-8")
        # The request line was read as Latin-1; bytes that are no UTF-8 become replacement characters.
        try:
            target = urlsplit(self.path.encode("latin-1", "replace").decode("utf-8", "replace"))
        except ValueError:  # an address that is none: http://[x/
            return self.send_error(400)
        if target.path == THUMBNAILS:
            return self._thumbnail(target.query)
        if target.path not in ("/", "/api/search"):
            return self.send_error(404)
        as_json = target.path != "/"
        shown: dict[str, Any] = {}
        try:
            fields = parse_qs(target.query, keep_blank_values=True, errors="replace", max_num_fields=_FIELDS)
            given = {name: values[0] for name, values in fields.items()}
            query, mode = clean(given.get("q", "")), given.get("mode") or None
            number = given.get("k") or str(DEFAULT_RESULTS)
            shown = {"query": query[:MAX_QUERY], "mode": mode}
            if not (number.isascii() and number.isdigit() and len(number) < 6):
                raise UserError(f"the number of results (k) must be a whole number from 1 to {MAX_RESULTS}")
            if not query and not as_json:
                return self._send(200, self.server.page(**shown))
            answer = self.server.live.ask(query, mode, int(number))
            shown = {"query": query, "mode": answer.mode, "k": answer.k, "answer": answer}
        except UserError as error:
            return self._refuse(503 if isinstance(error, Unavailable) else 400, str(error), as_json, shown)
        except ValueError:  # of parse_qs
            return self._refuse(400, f"more than {_FIELDS} fields in the address", as_json, shown)
        except Exception:
            traceback.print_exc()
            return self._refuse(500, "the search failed; the terminal it was started in says why", as_json, shown)
        if as_json:
            return self._send_json(200, answer.as_json())
        return self._send(200, self.server.page(**shown))

    do_HEAD = do_GET  # noqa: N815 (http.server's naming)

    def _thumbnail(self, fields: str) -> None:
        """The id is looked up among those of the index; it never becomes part of a path."""
        try:
            given = parse_qs(fields, errors="replace", max_num_fields=_FIELDS).get("id", [""])
            found = self.server.live.thumbnail(given[0])
        except (UserError, ValueError, OSError):  # the index has gone, or is being replaced: the next page tells
            found = None
        if found is None:
            return self._send(404, "No such picture.\n", "text/plain; charset=utf-8")
        self._send(200, found, KIND)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses itself, said in our way: methods other than GET and HEAD are 405."""
        code = 405 if code == 501 else code
        self.close_connection = True
        said = "only GET and HEAD are answered here" if code == 405 else HTTPStatus(code).phrase
        with contextlib.suppress(OSError):
            self._refuse(code, said, getattr(self, "path", "").startswith("/api/"), {})
            self._drain()

    def _refuse(self, code: int, message: str, as_json: bool, shown: dict[str, Any]) -> None:
        if as_json:
            return self._send_json(code, {"error": message})
        return self._send(code, self.server.page(**shown, error=message))

    def _send_json(self, code: int, content: dict[str, Any]) -> None:
        self._send(code, json.dumps(content) + "\n", "application/json; charset=utf-8")

    def _send(self, code: int, content: str | bytes, kind: str = "text/html; charset=utf-8") -> None:
        body = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if code == 405:
            self.send_header("Allow", "GET, HEAD")
        allowed = f"style-src 'sha256-{self.server.style_hash}'; img-src data: 'self'; form-action 'self'"
        nothing_else = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
        self.send_header("Content-Security-Policy", f"{nothing_else}; {allowed}")
        for name, value in {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _named_here(self) -> bool:
        """Whether the Host header is a name of this machine; anything goes where the server is open to others."""
        if not self.server.loopback:
            return True
        host = self.headers.get("Host", "").strip().lower()
        name = re.fullmatch(r"\[([^\]]*)\](?::\d+)?|([^:]*)(?::\d+)?", host)
        return name is not None and (name[1] or name[2]).rstrip(".") in self.server.hosts

    def _drain(self) -> None:
        """Read what a refused client still sends: closing on unread bytes would reset the connection."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1.0)
        end, left = time.monotonic() + 3, _DRAINED
        while left > 0 and time.monotonic() < end and (read := len(self.connection.recv(1 << 16))):
            left -= read

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: what is asked stays with who asks."""
