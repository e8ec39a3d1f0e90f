"""A server in this process that breaks off, forgets and changes its mind."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 3000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Web:
    """What the server does; `ranges` are the Range headers it was asked with."""

    address: str = ""
    content: bytes = CONTENT
    tag: str | None = '"one"'
    breaks: list[int] = field(default_factory=list)
    """After how many bytes each of the next answers is cut off."""
    statuses: list[int] = field(default_factory=list)
    """Of the next answers."""
    shift: int = 0
    """How far behind the asked one the answered range begins, by its header."""
    ranges: list[str | None] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers["Range"]
        self.ranges.append(asked)
        if handler.path != "/weights.pth":
            self.statuses.insert(0, 404)
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
        elif asked and handler.headers["If-Range"] in (None, self.tag):
            self.send(handler, int(asked.removeprefix("bytes=").removesuffix("-")))
        else:
            self.send(handler, None)

    def send(self, handler: BaseHTTPRequestHandler, start: int | None) -> None:
        rest = self.content[start or 0 :]
        if not rest:
            handler.send_error(416)
            return
        handler.send_response(200 if start is None else 206)
        if start is not None:
            handler.send_header("Content-Range", f"bytes {start + self.shift}-{len(self.content) - 1}/*")
        handler.send_header("Content-Length", str(len(rest)))
        if self.tag:
            handler.send_header("ETag", self.tag)
        handler.end_headers()
        handler.wfile.write(rest[: self.breaks.pop(0)] if self.breaks else rest)


@contextmanager
def serving() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        web.address = f"http://127.0.0.1:{server.server_address[1]}/weights.pth"
        yield web
        server.shutdown()
        thread.join()
