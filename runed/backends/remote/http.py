"""HTTP with an engine on another machine: tries, pauses, redirects, keys, and errors that never quote an answer."""

from __future__ import annotations

import asyncio
import ssl
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeAlias

import httpx
import msgspec
import tenacity

from runed import tracing
from runed.backends.remote.key import Key
from runed.errors import BackendUnavailableError, DownloadError, InvalidTextError, bounded, printable
from runed.log import get_logger
from runed.own_models import RemoteModel
from runed.tls import PlainHTTPError, is_out_of_time, tls_problem
from runed.urls import retry_after
from runed.version import __version__

MakeTransport: TypeAlias = Callable[[RemoteModel, httpx.Limits], httpx.AsyncBaseTransport]
"""Makes what sends requests. It knows proxies and certificates."""

_ATTEMPTS = 5
"""The most tries of one request."""

_FIRST_WAIT, _MAX_WAIT = 0.1, 5.0
"""Seconds between the first two tries, plus up to as many by chance; and the most seconds between any two, unless the engine
asks for more."""

_CONNECT_TIMEOUT = 5.0
"""Seconds for a connection to be made."""

_PLAIN = "identity"
"""The name of no compression."""

_HEADERS = {"user-agent": f"runed/{__version__}", "accept": "*/*", "accept-encoding": _PLAIN}

_EXTENSIONS = {"timeout": httpx.Timeout(None, connect=_CONNECT_TIMEOUT).as_dict()}

_KEPT_ALIVE = 120.0
"""Seconds that an unused connection is kept."""

_MAX_REDIRECTS = 3

_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
"""Statuses below 500 that another try may not meet."""

_KEY_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

_ANSWER_BYTES = 16 * 1024 * 1024
"""The most bytes of an answer to a question that has no texts, such as a list of models."""

_BYTES_A_BYTE = 128
"""The most further bytes of an answer for each byte of the question, such as those of a token. Numbers in lists take over 40
times their bytes of memory, so an answer of any length could take all of it."""

_OTHER_NAME = {62, 64}
"""The codes of OpenSSL for a certificate of another server."""

_SHOWN_CODING = 20
"""Most characters of the name of a compression in a message."""

_SHOWN_BYTES = 4096
"""Bytes of an error answer that are looked at."""

_log = get_logger(__name__)


class PassingError(Exception):
    """A failure that the next try may not meet.

    Attributes:
        retry_after: Seconds that the engine asks to wait, or None.
        is_busy: Whether the engine is well, and only has too much to do.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, is_busy: bool = False) -> None:
        super().__init__(printable(bounded(message)))
        self.retry_after = retry_after
        self.is_busy = is_busy


class RefusedError(Exception):
    """The engine refuses a request for good.

    Attributes:
        status: The HTTP status.
        words: The beginning of its answer in small letters. It may quote a text, so nobody may see it.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.words = words


class KeyRefusedError(BackendUnavailableError):
    """The engine refuses the key, or wants one.

    Attributes:
        status: The HTTP status.
    """

    status = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        body: Its content.
        headers: Its headers.
        is_first: Whether it is the first one of its connection.
    """

    body: bytes
    headers: Mapping[str, str]
    is_first: bool


class RemoteHTTP:
    """Asks one engine. Must be made inside the event loop that uses it.

    Args:
        remote: The engine.
        make_transport: Makes what sends requests.

    Attributes:
        key: The key.
        was_lost: Whether a connection was lost or could not be made, or all earlier ones were closed. Another engine may answer
            afterwards.
    """

    def __init__(self, remote: RemoteModel, make_transport: MakeTransport) -> None:
        self.key = Key(remote)
        self.was_lost = False
        self._remote = remote
        self._make_transport = make_transport
        self._slots = asyncio.Semaphore(remote.concurrency)
        self._transport: httpx.AsyncBaseTransport | None = None
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._ends_silently = False
        self._not_before = 0.0
        self._flying = 0
        self._shares_connections = False

    async def close(self) -> None:
        """Close all connections. The next request makes new ones."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def get(self, url: str) -> Answer:
        """Ask for something, and try again what can pass.

        Raises:
            PassingError: All tries failed.
            RefusedError: The engine refuses it.
            BackendUnavailableError: It cannot be asked: its key, its certificate or a redirect is to blame.
        """
        return await self._patiently("GET", url, None, _ANSWER_BYTES)

    async def post(self, url: str, question: object, *, limit: int | None = None) -> Answer:
        """Ask a question, as JSON, and try again what can pass; see `get`.

        Args:
            url: Where to ask.
            question: The question.
            limit: The most bytes of the answer; None for as many as the tokens of the question's texts can have.
        """
        try:
            body = msgspec.json.encode(question)
        except UnicodeEncodeError:  # its message quotes the text
            raise InvalidTextError("a text is not valid Unicode (it has a lone surrogate); replace or remove it") from None
        return await self._patiently("POST", url, body, _ANSWER_BYTES + _BYTES_A_BYTE * len(body) if limit is None else limit)

    async def _patiently(self, method: str, url: str, body: bytes | None, limit: int) -> Answer:
        backoff = tenacity.wait_exponential(multiplier=_FIRST_WAIT, max=_MAX_WAIT) + tenacity.wait_random(0, _FIRST_WAIT)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, PassingError) else None
            return backoff(state) if asked is None else asked

        # The second condition ends the tries at once if the engine asks to wait for longer than anybody does here.
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(PassingError),
            stop=tenacity.stop_after_attempt(_ATTEMPTS) | tenacity.stop_before_delay(self._remote.timeout),
            wait=wait,
            reraise=True,
        )
        return await retrying(self._try, method, url, body, limit)

    async def _try(self, method: str, url: str, body: bytes | None, limit: int) -> Answer:
        loop = asyncio.get_running_loop()
        if (pause := self._not_before - loop.time()) > 0:
            await asyncio.sleep(pause)  # another request was asked to wait
        async with self._slots:
            self._flying += 1
            try:
                return await self._ask(method, url, body, limit)
            except asyncio.CancelledError:
                if self._shares_connections and self._flying == 1:
                    # httpcore tells a server of HTTP/2 nothing of a cancel. Over HTTP/1.1 it ends the connection itself.
                    await self.close()
                raise
            except KeyRefusedError:
                if not self.key.renew():
                    raise
                return await self._ask(method, url, body, limit)
            except PassingError as error:
                if error.is_busy and error.retry_after:
                    self._not_before = loop.time() + min(error.retry_after, self._remote.timeout)
                raise
            finally:
                self._flying -= 1

    async def _ask(self, method: str, url: str, body: bytes | None, limit: int) -> Answer:
        """Send a request once. Follow redirects to the same server."""
        headers = (
            _HEADERS | tracing.headers() | self.key.headers() | ({} if body is None else {"content-type": "application/json"})
        )
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                # Past httpx.AsyncClient, whose further steps nobody needs here: they take a third of the time of a request.
                request = httpx.Request(method, url, headers=headers, content=body, extensions=_EXTENSIONS)
                response = await self._open().handle_async_request(request)
                try:
                    if not response.has_redirect_location:
                        return await self._read(response, limit)
                    url = str(self._redirected(request.url, response))
                finally:
                    await response.aclose()
        except PlainHTTPError:
            raise BackendUnavailableError(
                f"the server of {self._remote.url} speaks http, not https; begin the url with http, or turn TLS on there"
            ) from None
        except httpx.TimeoutException as error:
            self.was_lost = True
            raise PassingError(f"no connection in time ({type(error).__name__})") from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError) as error:  # the last: a name that IDNA cannot encode
            raise BackendUnavailableError(f"{self._remote.url} cannot be asked: {error}; correct the url") from None
        except httpx.RequestError as error:
            if (problem := tls_problem(error)) is not None:
                raise BackendUnavailableError(_untrusted(self._remote, problem)) from None
            self.was_lost = True
            raise PassingError(str(error) or type(error).__name__) from None
        except DownloadError as error:  # certificates that cannot be used
            raise BackendUnavailableError(error.message) from None
        raise BackendUnavailableError(f"{self._remote.url} redirects more than {_MAX_REDIRECTS} times; check the url")

    def _open(self) -> httpx.AsyncBaseTransport:
        if self._transport is None:
            most = self._remote.concurrency
            limits = httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=_KEPT_ALIVE)
            self._transport = self._make_transport(self._remote, limits)
        return self._transport

    def _redirected(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        """Return where a redirect leads, if that is the same server: no other one gets a key or a text."""
        target = url.join(response.headers["location"])
        same = (target.scheme, target.host, target.port) == (url.scheme, url.host, url.port)
        safer = (url.scheme, target.scheme) == ("http", "https") and target.host == url.host and target.port is None
        if response.status_code == HTTPStatus.SEE_OTHER or not (same or safer):
            raise BackendUnavailableError(
                f"{self._remote.url} redirects to {target.scheme}://{target.netloc.decode()}, which is another server and gets "
                "neither key nor texts; if it is the right one, name it as the url"
            )
        return target

    async def _read(self, response: httpx.Response, limit: int) -> Answer:
        is_first = self._note_connection(response)
        self._shares_connections = response.http_version == "HTTP/2"
        status = response.status_code
        coding = response.headers.get("content-encoding", _PLAIN)
        if status < HTTPStatus.MULTIPLE_CHOICES and coding.lower() != _PLAIN:  # a few bytes of it could fill the memory
            raise BackendUnavailableError(
                f"{self._remote.url} compresses its answers ({coding[:_SHOWN_CODING]}), which was not asked for; turn that off "
                "in the engine, or in the proxy before it"
            )
        data = bytearray()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for piece in response.stream:
            data += piece
            if len(data) > limit:
                raise BackendUnavailableError(f"{self._remote.url} answered more than {limit:,} bytes; check the url")
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return Answer(bytes(data), response.headers, is_first)
        if status in _KEY_REFUSED:
            raise self._key_refused(status)
        if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise PassingError(
                f"HTTP status {status}",
                retry_after=retry_after(response.headers),
                is_busy=status == HTTPStatus.TOO_MANY_REQUESTS,
            )
        raise RefusedError(status, data[:_SHOWN_BYTES].decode(errors="replace").lower())

    def _note_connection(self, response: httpx.Response) -> bool:
        """Return whether an answer is the first one of its connection. Note the loss of all earlier ones."""
        stream = response.extensions.get("network_stream")
        is_first = stream not in self._known
        if is_first and self._ends_silently and all(other.get_extra_info("is_readable") for other in self._known):
            self.was_lost = True  # as at a new start of the engine, perhaps with another model
        self._known.add(stream)
        # A server that closes each connection says so. It would be proven anew with each request.
        self._ends_silently = response.headers.get("connection", "").lower() != "close"
        return is_first

    def _key_refused(self, status: int) -> KeyRefusedError:
        if place := self._remote.key_place:
            problem = f"refuses the key of {place}: it is wrong, has expired or may not do this; put another one there"
        else:
            problem = "wants a key; name its file as api_key_file, or RUNED_BACKEND_KEY_FILE"
        error = KeyRefusedError(f"{self._remote.url} {problem} (HTTP status {status})")
        error.status = status
        return error


def _untrusted(remote: RemoteModel, problem: ssl.SSLError) -> str:
    """Return what is wrong with the encryption of a server, and what to do."""
    if not isinstance(problem, ssl.SSLCertVerificationError):
        return f"the server of {remote.url} does not speak TLS, as https needs it; check the url, which may begin with http"
    if is_out_of_time(problem):
        remedy = f"have it renewed, or correct the clock of this machine: by it, today is {datetime.now(UTC):%Y-%m-%d}"
    elif problem.verify_code in _OTHER_NAME:
        remedy = "name the engine in the url as its certificate does"
    elif remote.ca_file is not None:
        remedy = f"no authority in {remote.ca_file}, its ca_file, has issued its certificate; name the right file there"
    else:
        remedy = "if it is yours, name the certificate of its authority as ca_file, or in SSL_CERT_FILE for RUNED_BACKEND"
    return f"the server of {remote.url} cannot be trusted: {problem.verify_message.rstrip('.')}; {remedy}"
