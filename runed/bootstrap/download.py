"""Downloads files: resumes an interrupted download, tries again, verifies while the bytes arrive, puts the file in place.

The bytes go to `<target>.partial`, and `<target>.partial.json` names the whole file. Only a wrong hash removes the two files.
After any other end of a download, the next one resumes it.
"""

from __future__ import annotations

import email.utils
import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import httpx
import msgspec
import tenacity

from runed.bootstrap.disk import file_errors, hash_rest
from runed.bootstrap.manifest import Artefact, printable_url
from runed.bootstrap.partial_files import discard_partial, partial_path, sidecar_path
from runed.bootstrap.policy import DownloadPolicy
from runed.errors import DownloadError, VerificationError
from runed.files import replace_durably, run_in_thread, write_atomically
from runed.log import get_logger
from runed.version import __version__

MAX_REDIRECTS = 10

_IDENTITY = {"Accept-Encoding": "identity"}
"""Headers that keep a server from compressing on the fly. The manifest has the hash of the plain bytes."""

_log = get_logger(__name__)


class _PassingError(Exception):
    """A failure that the next try may not meet.

    Attributes:
        retry_after: Seconds that the server asks to wait, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


async def download(
    artefact: Artefact,
    target: Path,
    *,
    policy: DownloadPolicy,
    on_bytes: Callable[[int], None],
    on_retry: Callable[[str], None],
) -> None:
    """Download a file and verify it.

    Args:
        artefact: The file to download.
        target: The place for it. Its directory must exist, and no other process may download to it at the same time.
        policy: The number and the times of tries.
        on_bytes: Called with the number of bytes so far, after each piece.
        on_retry: Called before each pause, with a sentence that tells its reason and length.

    Raises:
        DownloadError: The download failed in spite of all retries.
        VerificationError: The file of the server has another size or hash.
        DiskSpaceError: The disk is full.
        BootstrapError: The file cannot be written.
    """
    partial = partial_path(target)
    with file_errors(f"write {target.name}"):
        async with _client(policy) as client:
            for is_last_try in (False, True):
                with partial.open("r+b" if partial.exists() else "w+b") as file:
                    transfer = _Transfer(client, artefact, file, sidecar_path(target), on_bytes)
                    actual = await transfer.run(policy, on_retry)
                if actual == artefact.sha256:
                    break
                discard_partial(target)
                problem = f"{printable_url(artefact.url)} has SHA-256 {actual}, but the manifest says {artefact.sha256}"
                if is_last_try:
                    raise VerificationError(f"{problem}, twice; the file or the manifest was changed: check RUNED_MANIFEST")
                _log.warning("wrong hash, downloading once more from the start", problem=problem)
                on_retry("the downloaded file has a wrong hash; downloading it once more from the start")
        await run_in_thread(lambda: replace_durably(partial, target))
        sidecar_path(target).unlink(missing_ok=True)


async def fetch(url: str, *, limit: int, policy: DownloadPolicy) -> bytes:
    """Fetch a small document.

    Args:
        url: The URL of the document.
        limit: The largest size that is accepted, in bytes.
        policy: The number and the times of tries.

    Raises:
        DownloadError: The fetch failed in spite of all retries, or the document is larger than `limit`.
    """

    async def attempt(client: httpx.AsyncClient) -> bytes:
        async with _get(client, url, _IDENTITY) as response:
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > limit:
                    raise DownloadError(f"{printable_url(url)} is larger than {limit} bytes; check the URL")
            return bytes(data)

    async with _client(policy) as client:
        try:
            return await _retrying(policy, lambda _: None)(attempt, client)
        except _PassingError as error:
            raise _exhausted(url, error, "check the network and RUNED_MANIFEST") from error


class _Sidecar(msgspec.Struct, frozen=True):
    """The whole file of a partial file: its URL, its hash, and its strong ETag or ""."""

    url: str
    sha256: str
    etag: str


class _Transfer:
    """The transfer of one file to `<target>.partial`, over several connections if need be.

    The digest always covers exactly the first `_done` bytes of the partial file.
    """

    def __init__(
        self, client: httpx.AsyncClient, artefact: Artefact, file: BinaryIO, sidecar: Path, on_bytes: Callable[[int], None]
    ) -> None:
        self._client = client
        self._artefact = artefact
        self._file = file
        self._sidecar = sidecar
        self._on_bytes = on_bytes
        self._digest = hashlib.sha256()
        self._done = 0
        self._etag = ""

    async def run(self, policy: DownloadPolicy, on_retry: Callable[[str], None]) -> str:
        """Fetch the missing bytes and return the SHA-256 of the whole file.

        Failed attempts in a row end the transfer only if they brought fewer than `worthwhile` bytes. So a large file gets
        through a line that breaks every minute.
        """
        await self._resume()
        while True:
            before = self._done
            try:
                await _retrying(policy, on_retry)(self._attempt)
            except _PassingError as error:
                if self._done < before + policy.worthwhile:
                    hint = "check the network and try again: the download goes on where it stopped"
                    raise _exhausted(self._artefact.url, error, hint) from error
            else:
                return self._digest.hexdigest()

    async def _resume(self) -> None:
        """Go on after the bytes of an earlier download if they belong to this file. Otherwise start anew."""
        try:
            sidecar = msgspec.json.decode(self._sidecar.read_bytes(), type=_Sidecar)
        except (OSError, msgspec.DecodeError):
            sidecar = None
        self._digest = await hash_rest(self._file)
        self._done = self._file.tell()
        if sidecar is None or sidecar.sha256 != self._artefact.sha256 or self._done > self._artefact.size:
            self._start_over()
        elif sidecar.url == self._artefact.url:
            self._etag = sidecar.etag
        self._on_bytes(self._done)

    def _start_over(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self._done = 0
        self._etag = ""

    async def _attempt(self) -> None:
        if self._done == self._artefact.size:
            return
        async with _get(self._client, self._artefact.url, self._range_headers()) as response:
            self._check_size(response)
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not self._continues(response):
                self._start_over()
                if response.status_code != HTTPStatus.OK:
                    raise _PassingError("the server does not continue where the download was interrupted")
            if self._done == 0:
                self._note_source(response)
            async for chunk in response.aiter_raw():
                await self._append(chunk)
        if self._done < self._artefact.size:
            raise _PassingError(f"the connection was closed after {self._done} of {self._artefact.size} bytes")

    def _range_headers(self) -> dict[str, str]:
        if not self._done:
            return _IDENTITY
        headers = _IDENTITY | {"Range": f"bytes={self._done}-"}
        return headers | {"If-Range": self._etag} if self._etag else headers

    def _check_size(self, response: httpx.Response) -> None:
        """Refuse a file of a wrong size before its first byte."""
        match response.status_code:
            case HTTPStatus.OK:
                told = response.headers.get("Content-Length", "")
            case HTTPStatus.PARTIAL_CONTENT:
                told = response.headers.get("Content-Range", "").rpartition("/")[2]
            case _:
                return
        if told.isdecimal() and int(told) != self._artefact.size:
            raise self._wrong_size(f"has {told} bytes")

    def _continues(self, response: httpx.Response) -> bool:
        """Return whether the body begins at the end of the partial file."""
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            return str(response.headers.get("Content-Range", "")).startswith(f"bytes {self._done}-")
        return self._done == 0

    def _note_source(self, response: httpx.Response) -> None:
        etag = response.headers.get("ETag", "")
        # A weak ETag does not promise equal bytes, so a server never continues for one (RFC 9110, section 13.1.5).
        self._etag = "" if etag.startswith("W/") else etag
        sidecar = _Sidecar(url=self._artefact.url, sha256=self._artefact.sha256, etag=self._etag)
        write_atomically(self._sidecar, msgspec.json.encode(sidecar))

    async def _append(self, chunk: bytes) -> None:
        if self._done + len(chunk) > self._artefact.size:
            self._start_over()
            raise self._wrong_size("has more bytes")

        def write() -> None:
            self._file.write(chunk)
            self._file.flush()
            self._digest.update(chunk)
            self._done += len(chunk)

        await run_in_thread(write)
        self._on_bytes(self._done)

    def _wrong_size(self, problem: str) -> VerificationError:
        return VerificationError(
            f"{printable_url(self._artefact.url)} {problem}, but the manifest says {self._artefact.size}; "
            "the file or the manifest was changed: check RUNED_MANIFEST"
        )


def _client(policy: DownloadPolicy) -> httpx.AsyncClient:
    timeout = httpx.Timeout(policy.stall_timeout, connect=policy.connect_timeout)
    try:
        return httpx.AsyncClient(timeout=timeout, headers={"User-Agent": f"runed/{__version__}"})
    except (ValueError, ImportError, OSError) as error:
        raise DownloadError(
            f"the proxy or certificate settings of the environment cannot be used: {error}; check HTTPS_PROXY, ALL_PROXY, "
            "SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error


@asynccontextmanager
async def _get(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
    """Open a response with status 200, 206 or 416, and follow redirects.

    Raise an exception of httpx as a `_PassingError` if another try may succeed, otherwise as a `DownloadError`.
    """
    shown = printable_url(url)
    try:
        request = client.build_request("GET", url, headers=headers)
        for _ in range(MAX_REDIRECTS + 1):
            response = await client.send(request, stream=True)
            try:
                if response.next_request is None:
                    _check_status(response, shown)
                    yield response
                    return
            finally:
                await response.aclose()
            if request.url.scheme == "https" and response.next_request.url.scheme != "https":
                raise DownloadError(f"{shown} redirects from https to an insecure URL, which is not followed; check the URL")
            request = response.next_request
    except httpx.TimeoutException as error:
        raise _PassingError(f"no answer in time ({type(error).__name__})") from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise DownloadError(f"{shown} is, or redirects to, a URL that cannot be fetched: {error}") from error
    except httpx.TransportError as error:
        if _is_certificate_error(error):
            raise DownloadError(
                f"the server of {shown} cannot be trusted: {error}; behind a proxy with its own certificate set SSL_CERT_FILE"
            ) from error
        raise _PassingError(str(error) or type(error).__name__) from error
    raise DownloadError(f"{shown} redirects more than {MAX_REDIRECTS} times; check the URL")


def _check_status(response: httpx.Response, shown: str) -> None:
    status = response.status_code
    answer = f"{status} {response.reason_phrase}".strip()
    if status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS} or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _PassingError(f"the server answered {answer}", retry_after=_retry_after(response.headers.get("Retry-After")))
    if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}:
        raise DownloadError(f"{shown} answered {answer}; check that the file is still there, and RUNED_MANIFEST")


def _retry_after(value: str | None) -> float | None:
    """Read a Retry-After header: seconds or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _retrying(policy: DownloadPolicy, on_retry: Callable[[str], None]) -> tenacity.AsyncRetrying:
    """Return the retries of a policy. Nothing else in runed tries a download again."""
    backoff = tenacity.wait_exponential(multiplier=policy.first_wait, max=policy.max_wait)
    jitter = tenacity.wait_random(0, policy.first_wait)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _PassingError) and error.retry_after is not None:
            return min(error.retry_after, policy.max_retry_after)
        return backoff(state) + jitter(state)

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        message = f"{error}; trying again in {state.upcoming_sleep:.0f} s"
        _log.warning("download interrupted", problem=str(error), wait_seconds=round(state.upcoming_sleep, 1))
        on_retry(message)

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(_PassingError),
        stop=tenacity.stop_after_attempt(policy.attempts),
        wait=wait,
        before_sleep=before_sleep,
        reraise=True,
    )


def _exhausted(url: str, error: _PassingError, hint: str) -> DownloadError:
    return DownloadError(f"{printable_url(url)} could not be downloaded: {error}; {hint}")
