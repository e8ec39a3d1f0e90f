"""What the web server refuses before it reads a body: other web sites, and bodies that are too large."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose


class Guard:
    """Goes before an application that trusts whoever reaches it, `largest_body` in bytes."""

    def __init__(self, app: ASGIApp, largest_body: int) -> None:
        self._app = app
        self._largest_body = largest_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            if _from_elsewhere(headers):
                refusal = PlainTextResponse("This page takes no requests from other sites.", 403)
                app = WebSocketClose() if scope["type"] == "websocket" else refusal
            elif "transfer-encoding" in headers:  # no browser sends one; its length would be known too late
                app = PlainTextResponse("Send the length of the body.", 411)
            elif int(headers.get("content-length", 0)) > self._largest_body:
                app = PlainTextResponse("This is too large.", 413)
        await app(scope, receive, send)


def _from_elsewhere(headers: Headers) -> bool:
    """Browsers name the site whose script asks, for web sockets too, which they let cross from site to site."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
