"""Who may see the page, and what a browser may do with it.

A token opens the page once; then a signed cookie does, for a week. Every answer forbids the browser to load
anything from elsewhere, to run scripts that are not files of this package, and to show the page inside another.
A form that changes something carries a value derived from the cookie, which no other site can know.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
import traceback
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.errors import CarinaError
from worker.settings import Settings

log = logging.getLogger(__name__)

LEAST_TOKEN = 16
SESSION_SECONDS = 7 * 86_400
COOKIE = "carina_session"
SIGN_IN = "/sign-in"
#: Forms are small.
LARGEST_FORM = 16_384
#: Seen without a token: they say nothing of anybody.
_PUBLIC = ("/static/", "/health")

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def is_loopback(address: str) -> bool:
    """Whether only programs of this machine reach ``address``."""
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """The token, "" where the page needs none, and what signs cookies and forms."""

    token: str
    key: bytes = field(repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Access:
        """As the settings say; a token is made where none is set.

        Raises
        ------
        CarinaError
            The token is short, or the page shall be open to other machines.
        """
        if settings.serve_open not in ("yes", "no"):
            raise CarinaError(f"CARINA_SERVE_OPEN must be yes or no, not {settings.serve_open!r}.")
        if settings.serve_token:
            if len(settings.serve_token) < LEAST_TOKEN:
                raise CarinaError(
                    f"CARINA_SERVE_TOKEN needs at least {LEAST_TOKEN} characters. Make one: openssl rand -hex 24"
                )
            # The same after a restart, so that nobody has to sign in again.
            key = hashlib.sha256(b"carina serve\0" + settings.serve_token.encode()).digest()
            return cls(settings.serve_token, key)
        if settings.serve_open == "no":
            return cls(secrets.token_urlsafe(24), secrets.token_bytes(32))
        if not is_loopback(settings.serve_address):
            raise CarinaError(
                f"CARINA_SERVE_OPEN=yes is for loopback addresses only, not {settings.serve_address}: "
                "set CARINA_SERVE_TOKEN instead."
            )
        return cls("", secrets.token_bytes(32))

    def admits(self, token: str) -> bool:
        """Whether this is the token; takes as long for any wrong one."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    def new_session(self) -> str:
        """A session that begins now, signed."""
        begun = f"{int(time.time()):x}.{secrets.token_hex(16)}"
        return f"{begun}.{self._sign('session', begun)}"

    def knows(self, session: str) -> bool:
        """Whether a session was signed here and is not over."""
        begun, _, signature = session.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", begun).encode()):
            return False
        return 0 <= time.time() - int(begun.partition(".")[0], 16) < SESSION_SECONDS

    def form_value(self, session: str) -> str:
        """What a form of this session carries."""
        return self._sign("form", session)

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self.key, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()


def local_path(path: str) -> str:
    """``path`` if it is one of this page, else the first screen: nobody is sent elsewhere."""
    plain = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if plain else "/"


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; of one that came twice the last. A form that is too large has none."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_FORM:
            return {}
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))


class Guard:
    """Stands before the whole application: admits, answers who may not pass, sets headers."""

    def __init__(self, app: ASGIApp, *, access: Access, sign_in_page: str) -> None:
        self._app = app
        self._access = access
        #: A template's text with the places ``@WORDS@`` and ``@NEXT@``.
        self._page = sign_in_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        session = _cookie(Headers(scope=scope))
        known = bool(session) and self._access.knows(session)
        fresh = ""
        if not known and not self._access.token:
            session = fresh = self._access.new_session()
        scope.setdefault("state", {})["session"] = session if known or fresh else ""

        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if fresh:
                    headers.append("Set-Cookie", _set_cookie(request, fresh))
            await send(message)

        try:
            answer = await self._answer(request, known or bool(fresh))
            await (answer or self._app)(scope, receive, send_with_headers)
        except Exception as error:
            # The exception's own words may name a film: neither the log nor the page has them.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
            log.error("The page %s failed: %s", request.url.path, place)
            if not begun:
                failure = PlainTextResponse("This page failed; the log says where. Other pages go on.", 500)
                await failure(scope, receive, send_with_headers)

    async def _answer(self, request: Request, known: bool) -> Response | None:
        """An answer for who may not pass or just came in; None where the application answers."""
        if not self._access.token and not is_loopback(request.url.hostname or ""):
            # Another site may have pointed its own name at this machine.
            return PlainTextResponse("Call this page by a loopback address, such as 127.0.0.1.", 421)
        path = request.url.path
        if path.startswith(_PUBLIC):
            return None
        if path == SIGN_IN and request.method == "POST" and self._access.token:
            form = await read_form(request)
            return self._sign_in(request, form.get("token", ""), form.get("next", "/"))
        if request.method in ("GET", "HEAD") and "token" in request.query_params and self._access.token:
            rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
            return self._sign_in(request, request.query_params["token"], path + ("?" + urlencode(rest) if rest else ""))
        if known:
            return None
        target = path + ("?" + request.url.query if request.url.query else "")
        return self._ask("", target if request.method == "GET" else "/", 401)

    def _sign_in(self, request: Request, token: str, target: str) -> Response:
        if not self._access.admits(token):
            return self._ask("That is not the token.", target, 403)
        answer = RedirectResponse(local_path(target), 303)
        answer.headers.append("Set-Cookie", _set_cookie(request, self._access.new_session()))
        return answer

    def _ask(self, words: str, target: str, status: int) -> Response:
        from markupsafe import escape

        page = self._page.replace("@WORDS@", str(escape(words))).replace("@NEXT@", str(escape(local_path(target))))
        return Response(page, status, media_type="text/html")


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except Exception:
        # Another program's cookie of this host may be anything.
        return ""
    return found.value if found else ""


def _set_cookie(request: Request, session: str) -> str:
    secure = "; Secure" if request.url.scheme == "https" else ""
    return f"{COOKIE}={session}; Path=/; Max-Age={SESSION_SECONDS}; HttpOnly; SameSite=Lax{secure}"
