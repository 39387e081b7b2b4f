"""HTTP for downloads: connections with or without a proxy, redirects, tries, and errors that tell the way to the server."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import tenacity
from socksio import ProtocolError as SocksProtocolError

from runed.bootstrap.hub import Hub
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.proxies import Proxies, Proxy, is_loopback_name
from runed.errors import DownloadError, bounded, printable
from runed.log import get_logger
from runed.tls import PlainHTTPError, is_out_of_time, speaks_http, tls_problem
from runed.urls import printable_url, retry_after
from runed.version import __version__

MAX_REDIRECTS = 10

IDENTITY = {"Accept-Encoding": "identity"}
"""Headers that keep a server from compressing on the fly. The manifest has the hash of the plain bytes."""

_TEMPORARY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""Statuses below 500 that another try may not meet."""

_LOGIN_REFUSED = (str(int(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED)), "Invalid username/password", "Requested ")
"""Beginnings of the messages of httpx about a proxy that wants another login, or none."""

_CHECK_LOGIN = "check user and password of the proxy"

_CORRECT_URL = "correct what names it: RUNED_MANIFEST, HF_ENDPOINT or config.json"

_HTTPS_PORT = 443

_SILENCE = 2.0
"""Seconds that a TLS handshake may take before the server is asked whether it speaks HTTP without encryption."""

_log = get_logger(__name__)


_NUMBER = re.compile(r"^\[Errno -?\d+\] ")
"""The number of an error of the system, which says nothing to people."""


class PassingError(Exception):
    """A failure that the next try may not meet.

    Attributes:
        retry_after: Seconds that the server asks to wait, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(printable(bounded(message)))
        self.retry_after = retry_after


class Web:
    """The web servers that one download needs. Use it as an async context.

    Args:
        policy: The times of a try.
        proxies: The proxies.
        hub: The hub, whose files may need a token.
    """

    def __init__(self, policy: DownloadPolicy, proxies: Proxies, hub: Hub = Hub()) -> None:  # noqa: B008 # immutable
        self._proxies = proxies
        self._hub = hub
        self._policy = policy
        self._asked = ""  # the URL of the last `get`
        self._here = ""  # the URL at which the last request was sent, perhaps after a redirect
        # A proxy may accept a connection and then never answer, for which httpx has no time limit.
        self._patience = policy.connect_timeout + 2 * policy.stall_timeout
        timeout = httpx.Timeout(policy.stall_timeout, connect=policy.connect_timeout)
        headers = {"User-Agent": f"runed/{__version__}"}
        self._client = httpx.AsyncClient(transport=Transport(proxies), timeout=timeout, headers=headers, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    def name(self, url: str) -> str:
        """Return a URL for a message, without secrets, and with the way of the last request."""
        return f"{printable_url(url)}{self.way}"

    @property
    def way(self) -> str:
        """A clause that tells the way of the last request: the server of a redirect to another one, and `Proxies.way`."""
        asked, here = (urlsplit(printable_url(url)).netloc for url in (self._asked, self._here))
        return f"{f' (redirected to {here})' if here != asked else ''}{self._proxies.way(self._here)}"

    @asynccontextmanager
    async def get(self, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """Open the answer to a GET, and follow redirects. The answer has any status but those of temporary failures.

        Raises:
            PassingError: Another try may succeed.
            DownloadError: No other try will succeed.
        """
        try:
            response = await self._open(url, headers)
            try:
                self._check_passing(response)
                yield response
            finally:
                await response.aclose()
        except (TimeoutError, httpx.TimeoutException) as error:
            raise PassingError(f"no answer in time ({type(error).__name__}){self.way}") from error
        except httpx.RequestError as error:
            problem = tls_problem(error)
            if isinstance(problem, ssl.SSLCertVerificationError):
                raise DownloadError(f"the server of {self.name(url)} cannot be trusted: {error}; {_remedy(problem)}") from error
            if problem is not None or isinstance(error, PlainHTTPError):
                lack = "does not speak TLS, as https needs it" if problem else "speaks http, not https"
                raise DownloadError(f"the server of {self.name(url)} {lack}; {_CORRECT_URL}") from error
            if isinstance(error, httpx.ProxyError) and str(error).startswith(_LOGIN_REFUSED):
                raise DownloadError(f"{self.name(url)} could not be downloaded: {error}; {_CHECK_LOGIN}") from error
            words = _NUMBER.sub("", str(error)) or type(error).__name__
            if isinstance(error, httpx.ConnectError):
                words = f"{urlsplit(printable_url(self._here)).netloc} cannot be reached: {words}"
            raise PassingError(f"{words}{self.way}") from error

    async def body(self, response: httpx.Response, *, raw: bool = False) -> AsyncIterator[bytes]:
        """Yield the pieces of a body.

        Args:
            response: The answer.
            raw: Whether to leave the pieces as they were sent. Otherwise an encoding is undone.

        Raises:
            PassingError: They come more slowly than the policy allows.
        """
        count, began = 0, time.monotonic()
        async for piece in response.aiter_raw() if raw else response.aiter_bytes():
            arrived = time.monotonic()
            count += len(piece)
            if (passed := arrived - began) >= self._policy.slow_window:
                if count < self._policy.slow_bytes:
                    raise PassingError(f"only {count} bytes came in {passed:.0f} s{self.way}")
                count, began = 0, arrived
            yield piece
            began += time.monotonic() - arrived  # the caller's time, such as that of a slow disk

    async def _open(self, url: str, headers: dict[str, str]) -> httpx.Response:
        """Send a GET, and follow redirects."""
        try:
            # httpx takes the token out when a redirect leads to another host.
            request = self._client.build_request("GET", url, headers=headers | self._hub.headers(url))
            self._asked = str(request.url)
            for _ in range(MAX_REDIRECTS + 1):
                self._here = str(request.url)
                async with asyncio.timeout(self._patience):
                    response = await self._client.send(request, stream=True)
                if response.next_request is None:
                    return response
                await response.aclose()
                _check_scheme(response.next_request.url)
                if request.url.scheme == "https" and response.next_request.url.scheme != "https":
                    raise DownloadError(
                        f"{self.name(url)} redirects from https to an insecure URL, which is not followed; check the URL"
                    )
                request = response.next_request
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError) as error:  # the last: a name that IDNA cannot encode
            raise DownloadError(
                f"{self.name(url)} is, or redirects to, a URL that cannot be fetched: {error}; {_CORRECT_URL}"
            ) from error
        raise DownloadError(f"{self.name(url)} redirects more than {MAX_REDIRECTS} times; check the URL")

    def refusal(self, response: httpx.Response, url: str) -> DownloadError:
        """Return the error of an answer whose status is none of the expected ones."""
        asks_login = response.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        hint = _CHECK_LOGIN if asks_login else "check that the file is still there, and RUNED_MANIFEST"
        if response.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN} and self._hub.owns(url):
            hint = (
                "accept the terms on the page of the repository if there are any, and set HF_TOKEN to a token that may read it"
            )
        return DownloadError(f"{self.name(url)} answered {_status(response)}; {hint}")

    def _check_passing(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in _TEMPORARY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise PassingError(
                f"the server answered {_status(response)}{self.way}",
                retry_after=retry_after(response.headers),
            )


class Transport(httpx.AsyncBaseTransport):
    """Sends each request to its server or to the proxy of its URL.

    Args:
        proxies: The proxies.
        authorities: A file of certificates of authorities to trust, as PEM; None for those of the environment.
        options: Further options of `httpx.AsyncHTTPTransport`, such as `http2` and `limits`.
    """

    def __init__(self, proxies: Proxies, *, authorities: Path | None = None, **options: Any) -> None:  # noqa: ANN401 # those of httpx
        self._proxies = proxies
        self._authorities = authorities
        self._options = options
        self._transports: dict[tuple[Proxy | None, str], httpx.AsyncHTTPTransport] = {}
        self._encrypting: set[tuple[str, int | None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            DownloadError: It needs certificates, and those that are named cannot be used.
            PlainHTTPError: A server of an https URL speaks HTTP without encryption.
        """
        proxy = self._proxies.choose(str(request.url))
        if is_loopback_name(request.url.host):
            request = _to_localhost(request)
        if proxy is not None:
            request.extensions["trace"] = _close_after_failed_handshake(asyncio.Event())
        key = proxy, request.url.scheme
        if key not in self._transports:
            self._transports[key] = self._transport(*key)
        try:
            if proxy is None and request.url.scheme == "https" and _server(request) not in self._encrypting:
                response = await _first(self._transports[key], request)
                self._encrypting.add(_server(request))
                return response
            return await self._transports[key].handle_async_request(request)
        except SocksProtocolError:  # httpx does not know it
            raise httpx.ProxyError("the proxy does not speak SOCKS5", request=request) from None

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.aclose()

    def _transport(self, proxy: Proxy | None, scheme: str) -> httpx.AsyncHTTPTransport:
        """Return what sends requests of one scheme to their servers, or to a proxy."""
        by_tls = proxy is not None and proxy.url.startswith("https:")
        certificates = _certificates(self._authorities) if by_tls or scheme == "https" else _no_certificates()
        through = None
        if proxy is not None:
            through = httpx.Proxy(proxy.url, auth=proxy.auth, ssl_context=certificates if by_tls else None)
        return httpx.AsyncHTTPTransport(verify=certificates, proxy=through, trust_env=False, **self._options)


def _server(request: httpx.Request) -> tuple[str, int]:
    return request.url.host, request.url.port or _HTTPS_PORT


async def _first(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
    """Send the first request to a server. One without encryption may read the TLS handshake and wait for more, without end.

    Raises:
        PlainHTTPError: It is such a server.
    """
    greeted = asyncio.Event()
    request.extensions["trace"] = _close_after_failed_handshake(greeted)
    sending = asyncio.ensure_future(transport.handle_async_request(request))
    greeting = asyncio.ensure_future(greeted.wait())
    try:
        await asyncio.wait({sending, greeting}, timeout=_SILENCE, return_when=asyncio.FIRST_COMPLETED)
        if not (sending.done() or greeted.is_set()) and await speaks_http(*_server(request)):
            raise PlainHTTPError("it speaks HTTP without encryption", request=request)
        return await sending
    finally:
        greeting.cancel()
        sending.cancel()
        await asyncio.gather(sending, greeting, return_exceptions=True)  # an exception that nobody takes would be logged


def _certificates(authorities: Path | None) -> ssl.SSLContext:
    """Load certificates from a file, or those of the environment, which takes 25 ms."""
    try:
        return httpx.create_ssl_context() if authorities is None else ssl.create_default_context(cafile=authorities)
    except (OSError, ValueError) as error:
        place = "the certificates of the environment" if authorities is None else f"the certificates of {authorities}"
        remedy = "check SSL_CERT_FILE and SSL_CERT_DIR" if authorities is None else "name a file of certificates as PEM"
        raise DownloadError(f"{place} cannot be used: {error}; {remedy}") from error


def _no_certificates() -> ssl.SSLContext:
    """Return what trusts nobody, since httpx would load certificates also for requests without encryption."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _check_scheme(url: httpx.URL) -> None:
    """Refuse what httpcore would take for http, such as ws."""
    if url.scheme not in {"http", "https"}:
        raise httpx.UnsupportedProtocol(f"its scheme is {url.scheme!r}")


def _to_localhost(request: httpx.Request) -> httpx.Request:
    """Return a request to a name of loopback with the address of `localhost`, the only such name that all systems look up."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host="localhost"),
        headers=request.headers,  # with the old name as Host
        stream=request.stream,
        extensions={"sni_hostname": request.url.host, **request.extensions},
    )


def _close_after_failed_handshake(greeted: asyncio.Event) -> Callable[[str, dict[str, Any]], Awaitable[None]]:
    """Return a trace of httpcore that closes a connection whose handshake fails, with TLS or with a SOCKS proxy.

    httpcore leaves open the connection to such a proxy, and one whose request is cancelled.

    Args:
        greeted: Is set when TLS is spoken.
    """
    stream: Any = None

    async def trace(event: str, info: dict[str, Any]) -> None:
        nonlocal stream
        if event.endswith("connect_tcp.complete"):
            stream = info["return_value"]
        elif event.endswith("start_tls.complete"):
            greeted.set()
        elif event.endswith(("start_tls.failed", "setup_socks5_connection.failed")):
            await stream.aclose()

    return trace


async def fetch(
    url: str,
    *,
    limit: int,
    policy: DownloadPolicy,
    proxies: Proxies,
    hub: Hub = Hub(),  # noqa: B008 # immutable
    on_retry: Callable[[str], None] = lambda _: None,
) -> bytes:
    """Fetch a small document.

    Args:
        url: The URL of the document.
        limit: The largest size that is accepted, in bytes.
        policy: The number and the times of tries.
        proxies: The proxies.
        hub: The hub.
        on_retry: Called before each pause with a sentence that tells the reason.

    Raises:
        DownloadError: The fetch failed in spite of all retries, or the document is larger than `limit`.
    """

    async def attempt() -> bytes:
        async with web.get(url, IDENTITY) as response:
            if response.status_code != HTTPStatus.OK:
                raise web.refusal(response, url)
            data = bytearray()
            async for chunk in web.body(response):
                data += chunk
                if len(data) > limit:
                    raise DownloadError(f"{web.name(url)} is larger than {limit} bytes; check the URL")
            return bytes(data)

    async with Web(policy, proxies, hub) as web:
        try:
            return await retrying(policy, on_retry)(attempt)
        except PassingError as error:
            raise exhausted(url, error, "check the network and RUNED_MANIFEST") from error


def retrying(policy: DownloadPolicy, on_retry: Callable[[str], None]) -> tenacity.AsyncRetrying:
    """Return the retries of a policy. Nothing else in runed tries a download again."""
    backoff = tenacity.wait_exponential(multiplier=policy.first_wait, max=policy.max_wait)
    jitter = tenacity.wait_random(0, policy.first_wait)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, PassingError) and error.retry_after is not None:
            return min(error.retry_after, policy.max_retry_after)
        return backoff(state) + jitter(state)

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        message = f"{error}; trying again in {state.upcoming_sleep:.0f} s"
        _log.warning("download interrupted", problem=str(error), wait_seconds=round(state.upcoming_sleep, 1))
        on_retry(message)

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(PassingError),
        stop=tenacity.stop_after_attempt(policy.attempts),
        wait=wait,
        before_sleep=before_sleep,
        reraise=True,
    )


def exhausted(url: str, error: PassingError, hint: str) -> DownloadError:
    """Return the error of a download whose last try failed, with what to do now."""
    return DownloadError(f"{printable_url(url)} could not be downloaded: {error}; {hint}")


def _status(response: httpx.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}".strip()


def _remedy(problem: ssl.SSLCertVerificationError) -> str:
    """Return what to do about a certificate that was refused."""
    if is_out_of_time(problem):
        return f"check the clock of this machine: by it, today is {datetime.now(UTC):%Y-%m-%d}"
    return "behind a proxy with its own certificate set SSL_CERT_FILE"
