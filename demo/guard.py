"""The guard: the page answers this machine's own browser, on its own pages, and nobody else."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

OWN = ("127.0.0.1", "localhost")
POLICY = (  # what the browser may load: nothing from elsewhere, whatever a page of Gradio's asks for
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


class Guard:
    """An ASGI application around another: it refuses what does not come from its own page.

    A Host other than 127.0.0.1 or localhost is a name that has been made to point here (DNS rebinding); an
    Origin other than the page's is another site's script. Both get 403, and so does an upload: the page takes
    none.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):  # the server's own start and end
            await self.app(scope, receive, send)
            return
        if reason := refusal(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            kind = (b"content-type", b"text/plain; charset=utf-8")
            await send({"type": "http.response.start", "status": 403, "headers": [kind]})
            await send({"type": "http.response.body", "body": reason.encode()})
            return

        async def sent(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in HEADERS]
                message = {**message, "headers": [*kept, *HEADERS.items()]}
            await send(message)

        await self.app(scope, receive, sent)


def refusal(scope: dict[str, Any]) -> str:
    """Why an ASGI request is refused, in one sentence; empty when it is not."""
    given: dict[bytes, list[str]] = {}
    for name, value in scope["headers"]:
        given.setdefault(name.lower(), []).append(value.decode("latin-1"))
    hosts = given.get(b"host", [])
    if len(hosts) != 1 or _name(hosts[0]) not in OWN:
        return "This page answers to 127.0.0.1 and localhost alone: open it under one of these."
    if any(origin != f"http://{hosts[0]}" for origin in given.get(b"origin", [])):
        return "This page answers to itself alone: another site has asked."
    if scope.get("path", "").rstrip("/").endswith("/upload"):
        return "This page takes no uploads: put images into train_images/."
    return ""


def _name(host: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
