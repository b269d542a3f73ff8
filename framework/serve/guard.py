"""Checks host, origin and size of every request before it reaches a route, and adds the headers of answers."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from framework.runtime.errors import UserError
from framework.serve.answers import ErrorAnswer, problem_answers

HEADERS = {
    "Cache-Control": "no-store",  # a browser keeps no report on its disk
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def error_response(status: int, error: UserError, headers: Mapping[str, str] = {}) -> JSONResponse:
    content = ErrorAnswer(errors=problem_answers(error.problems)).model_dump()
    return JSONResponse(content, status, headers=dict(headers))


class TooLargeError(UserError):
    """A request that is larger than the server accepts."""


class Guard:
    """Refuses requests to other host names, from pages of other sites, and with too many bytes.

    A page of another site can let its own name resolve to this machine (DNS rebinding): then the header Host has that
    name. Addresses cannot be rebound.

    Args:
        names: hosts that are allowed beside localhost and addresses.
        max_bytes: of a request's body.
        policy: Content-Security-Policy of every answer.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str], max_bytes: int, policy: str) -> None:
        self.app, self.names, self.max_bytes = app, names | {"localhost"}, max_bytes
        self.headers = {**HEADERS, "Content-Security-Policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        headers = Headers(scope=scope)
        host, origin, length = headers.get("host", ""), headers.get("origin"), headers.get("content-length", "0")
        if not self._is_own(host):
            error = UserError("foreign-request", f"found {host!r}", place="Host", expected="localhost or an address")
            await error_response(403, error)(scope, receive, send_with_headers)
        elif origin is not None and urlsplit(origin).netloc != host:
            error = UserError("foreign-request", f"found {origin!r}", place="Origin", expected=f"http://{host}")
            await error_response(403, error)(scope, receive, send_with_headers)
        elif not length.isdecimal() or int(length) > self.max_bytes:
            await error_response(413, self._too_large())(scope, receive, send_with_headers)
        else:
            await self.app(scope, self._counted(receive), send_with_headers)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _too_large(self) -> TooLargeError:
        return TooLargeError("too-large", "the request is too large", expected=f"at most {self.max_bytes:,} bytes")

    def _counted(self, receive: Receive) -> Receive:
        """Receives a body whose length the request does not tell."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large()
            return message

        return counted
