"""Downloads or copies a file: resumes an interrupted download, tries again, verifies, puts the file in place.

The bytes go to `<target>.partial`, and `<target>.partial.json` names the whole file. The next download resumes it.

Not every server can be asked for the rest of a file. If the answer is not this rest, the download begins anew in
`<target>.partial.new`, and the partial file is kept. The new file replaces it when it is known to be better: it is whole and
has the right hash, or it has become longer and its server told the right length.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import httpx
import msgspec

from runed.bootstrap.disk import file_errors, hash_rest
from runed.bootstrap.hub import Hub
from runed.bootstrap.manifest import Artefact
from runed.bootstrap.network import IDENTITY, PassingError, Web, exhausted, retrying
from runed.bootstrap.partial_files import discard_partial, fresh_path, open_partial, partial_path, sidecar_path
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.proxies import Proxies
from runed.errors import DownloadError, VerificationError, quoted
from runed.files import open_regular, read_record, replace_durably, run_in_thread, write_atomically
from runed.log import get_logger
from runed.os_errors import naming

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE)

_ENCODINGS = {"gzip", "deflate"}
"""Encodings of an answer that can be undone."""

_COPY_BYTES = 1024 * 1024
"""Bytes that are copied at once."""

_MAX_UNKNOWN_BYTES = 64 * 1024**3
"""Most bytes of a file whose size neither the manifest nor the server tells."""

_FEW_ATTEMPTS = 2
"""Attempts in a row at a URL that has a mirror."""

_CHANGED = "the file or the manifest was changed: check RUNED_MANIFEST"

_log = get_logger(__name__)


async def download(
    artefact: Artefact,
    target: Path,
    *,
    policy: DownloadPolicy,
    proxies: Proxies,
    hub: Hub = Hub(),  # noqa: B008 # immutable
    on_bytes: Callable[[int], None],
    on_retry: Callable[[str], None],
) -> str:
    """Download a file, or copy it if it is one of this machine, and verify it. If one URL fails, try the next mirror.

    Args:
        artefact: The file. Without a hash, any content is accepted that is complete.
        target: The place for it. Its directory must exist, and no other process may download to it at the same time.
        policy: The number and the times of tries.
        proxies: The proxies.
        hub: The hub, or the mirror of it, to fetch its files from.
        on_bytes: Called with the number of bytes so far, after each piece.
        on_retry: Called before each pause, and before each mirror, with a sentence that tells the reason.

    Returns:
        The SHA-256 of the file, as hexadecimal digits.

    Raises:
        DownloadError: The download failed in spite of all retries, or the file of this machine cannot be read.
        VerificationError: The file has another size or hash.
        DiskSpaceError: The disk is full.
        BootstrapError: The file cannot be written.
    """
    with file_errors(f"write {target.name}"):
        *mirrored, last = (replace(artefact, url=hub.address(url), mirrors=()) for url in (artefact.url, *artefact.mirrors))
        impatient = replace(policy, attempts=min(policy.attempts, _FEW_ATTEMPTS))
        async with Web(policy, proxies, hub) as web:

            async def fetch(copy: Artefact, policy: DownloadPolicy) -> str:
                if copy.path is not None:
                    return await _copy(copy, copy.path, target, on_bytes)
                with closing(_Transfer(web, copy, target, on_bytes)) as transfer:
                    return await transfer.run(policy, on_retry)

            for copy in mirrored:
                try:
                    sha256 = await fetch(copy, impatient)
                    break
                except (DownloadError, VerificationError) as error:
                    _log.warning("download failed, trying the next mirror", problem=error.message)
                    on_retry(f"{error.message}; trying the next mirror")
            else:
                sha256 = await fetch(last, policy)
        await run_in_thread(lambda: replace_durably(partial_path(target), target))
        sidecar_path(target).unlink(missing_ok=True)
    return sha256


async def _copy(artefact: Artefact, source: Path, target: Path, on_bytes: Callable[[int], None]) -> str:
    try:
        file = os.fdopen(open_regular(source), "rb")
    except OSError as error:
        raise DownloadError(f"{source} cannot be read: {error.strerror}; check RUNED_MANIFEST, which names it") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if artefact.size not in {None, size}:
            raise VerificationError(f"{source} has {size} bytes, but the manifest says {artefact.size}; {_CHANGED}")
        with closing(_Part(partial_path(target))) as part:
            part.cut(0, hashlib.sha256())
            while chunk := await run_in_thread(lambda: file.read(_COPY_BYTES)):
                await part.append(chunk)
                on_bytes(min(part.size, size))
    if artefact.sha256 not in {"", part.sha256}:
        discard_partial(target)
        raise VerificationError(f"{source} has SHA-256 {part.sha256}, but the manifest says {artefact.sha256}; {_CHANGED}")
    return part.sha256


class _Sidecar(msgspec.Struct, frozen=True):
    """The whole file of a partial file: its URL, its hash, and its strong ETag or ""."""

    url: str
    sha256: str
    etag: str


class _Part:
    """The first bytes of a file, on disk, with their hash.

    Attributes:
        path: The place.
        size: The number of bytes.
        digest: Their hash.
        etag: The strong ETag that the server gave the whole file, or "".
        length_told: Whether the server told the right length of the whole file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.digest = hashlib.sha256()
        self.etag = ""
        self.length_told = False
        self._file = open_partial(path)

    @property
    def sha256(self) -> str:
        """The hash in hexadecimal digits."""
        return self.digest.hexdigest()

    async def load(self) -> None:
        """Read the bytes that are there."""
        self.digest = await hash_rest(self._file)
        self.size = self._file.tell()

    async def append(self, chunk: bytes) -> None:
        """Write further bytes."""

        def write() -> None:
            with naming(self.path):
                self._file.write(chunk)
                self._file.flush()
            self.digest.update(chunk)
            self.size += len(chunk)

        await run_in_thread(write)

    def cut(self, size: int, digest: hashlib._Hash) -> None:
        """Drop the bytes after the first `size` ones, whose hash is `digest`."""
        self._file.seek(size)
        self._file.truncate()
        self.size, self.digest = size, digest

    def rename(self, path: Path) -> None:
        """Move the file to another place, where it replaces another file."""
        self.path.replace(path)
        self.path = path

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Transfer:
    """The transfer of one file to `<target>.partial`, over several connections if need be."""

    def __init__(self, web: Web, artefact: Artefact, target: Path, on_bytes: Callable[[int], None]) -> None:
        self._web = web
        self._artefact = artefact
        self._target = target
        self._on_bytes = on_bytes
        self._part = _Part(partial_path(target))
        self._kept = 0, self._part.digest.copy()
        self._can_go_on = True
        self._size = artefact.size  # if None, that of the last answer that tells one

    @property
    def _most(self) -> int:
        """The most bytes of the file."""
        return _MAX_UNKNOWN_BYTES if self._size is None else self._size

    def close(self) -> None:
        """Close the partial file, and remove it if nothing is in it."""
        self._part.close()
        if not self._part.size:
            discard_partial(self._target)

    async def run(self, policy: DownloadPolicy, on_retry: Callable[[str], None]) -> str:
        """Fetch the missing bytes, and return the SHA-256 of the file. After a wrong hash, begin anew once."""
        await self._load()
        is_last_try = False
        while True:
            actual = await self._fetch(policy, on_retry)
            if self._artefact.sha256 in {"", actual}:
                return actual
            self._reject()
            problem = (
                f"{self._web.name(self._artefact.url)} has SHA-256 {actual}, but the manifest says {self._artefact.sha256}"
            )
            if is_last_try:
                raise VerificationError(f"{problem}, twice; {_CHANGED}")
            _log.warning("wrong hash, downloading once more from the start", problem=problem)
            on_retry("the downloaded file has a wrong hash; downloading it once more from the start")
            is_last_try = True

    async def _load(self) -> None:
        """Go on after the bytes of an earlier download if they belong to this file. Otherwise start anew."""
        sidecar = read_record(sidecar_path(self._target), _Sidecar)
        part = self._part
        if sidecar is None or sidecar.sha256 != self._artefact.sha256 or part.path.stat().st_size > self._most:
            part.cut(0, hashlib.sha256())
        else:
            await part.load()
            part.etag = sidecar.etag if sidecar.url == self._artefact.url else ""
            if not (self._artefact.sha256 or part.etag):  # nothing would tell that the rest is of another file
                part.cut(0, hashlib.sha256())
        self._on_bytes(part.size)

    async def _fetch(self, policy: DownloadPolicy, on_retry: Callable[[str], None]) -> str:
        """Fetch the missing bytes and return the SHA-256 of the whole file.

        Failed attempts in a row end the transfer only if they brought fewer than `worthwhile` bytes. So a large file gets
        through a line that breaks every minute.
        """
        while True:
            before = self._part.size
            try:
                return await retrying(policy, on_retry)(self._attempt)
            except PassingError as error:
                if self._part.size < before + policy.worthwhile:
                    hint = "check the network and try again: the download goes on where it stopped"
                    raise exhausted(self._artefact.url, error, hint) from error

    def _reject(self) -> None:
        """Drop the last answer from the partial file, and do not ask for a rest again."""
        if self._size in {None, self._part.size}:
            size, digest = self._kept
            self._part.cut(size, digest.copy())
        self._can_go_on = False
        self._size = self._artefact.size

    async def _attempt(self) -> str:
        """Make one try. Return the SHA-256 of the whole file."""
        part = self._part
        if part.size == 0:
            await self._begin(part)
        elif part.sha256 == self._artefact.sha256 or part.size == self._size:
            return part.sha256
        elif not (self._can_go_on and (self._artefact.sha256 or part.etag) and await self._go_on(part)):
            return await self._begin_anew()
        return part.sha256

    async def _go_on(self, part: _Part) -> bool:
        """Ask for the missing bytes. Return whether they came, and not something else."""
        headers = IDENTITY | {"Range": f"bytes={part.size}-"}
        if part.etag:
            headers |= {"If-Range": part.etag}
        self._kept = part.size, part.digest.copy()
        async with self._web.get(self._artefact.url, headers) as response:
            if self._is_rest(response, part):
                if await self._receive(response, part, raw=True):
                    return True
                part.cut(*self._kept)
            _log.warning("the server does not continue, starting over", status=response.status_code)
        part.etag = ""  # the hash of the whole file decides, should the server continue at the next try
        return False

    def _is_rest(self, response: httpx.Response, part: _Part) -> bool:
        """Return whether the body begins at the end of the partial file, and is of the same whole file."""
        headers = response.headers
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if response.status_code != HTTPStatus.PARTIAL_CONTENT or found is None:
            return False
        start, last, total = int(found[1]), int(found[2]), found[3]
        length = headers.get("Content-Length", "")
        # A body that was compressed on the way has another length, or none.
        right_length = length == str(last - start + 1) if _encoding(response) else length in {"", str(last - start + 1)}
        etags = {"", part.etag} if self._artefact.sha256 else {part.etag}
        same_file = not part.etag or _strong_etag(response) in etags
        self._learn_size(total)
        return start == part.size and total in {str(self._size), "*"} and right_length and same_file

    async def _begin_anew(self) -> str:
        """Download the whole file beside the partial one. Return its SHA-256."""
        if shutil.disk_usage(self._target.parent).free < (self._size or self._part.size):
            self._part.cut(0, hashlib.sha256())  # there is no room for both
        new = _Part(fresh_path(self._target))
        new.cut(0, hashlib.sha256())
        try:
            await self._begin(new)
            return new.sha256
        finally:
            self._keep_better(new)

    def _keep_better(self, new: _Part) -> None:
        """Replace the partial file by a new one if that is known to be better. Otherwise remove the new one."""
        longer = new.size != self._size and new.length_told and new.size > self._part.size
        whole = new.sha256 == self._artefact.sha256 if self._artefact.sha256 else new.size == self._size
        better = longer or whole
        if not better:
            new.close()
            new.path.unlink()
            return
        self._part.close()
        new.rename(self._part.path)
        self._part, self._kept, self._can_go_on = new, (0, hashlib.sha256()), True
        self._note(new)

    async def _begin(self, part: _Part) -> None:
        """Download the whole file to an empty part."""
        self._size = self._artefact.size
        async with self._web.get(self._artefact.url, IDENTITY) as response:
            raw = self._check_whole(response)
            part.etag = _strong_etag(response)
            part.length_told = response.headers.get("Content-Length") == str(self._size)
            if part is self._part:
                self._note(part)
            if not await self._receive(response, part, raw=raw):
                part.cut(0, hashlib.sha256())
                raise self._wrong_size("has more bytes")

    def _check_whole(self, response: httpx.Response) -> bool:
        """Refuse an answer that is not the whole file, before its first byte. Return whether its body is the plain file."""
        told, encoding = response.headers.get("Content-Length", ""), _encoding(response)
        if response.status_code in {HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}:
            raise PassingError(f"the server answers {response.status_code} to a request for the whole file{self._web.way}")
        if response.status_code != HTTPStatus.OK:
            raise self._web.refusal(response, self._artefact.url)
        if told == str(self._size):
            return True  # also a server that calls a tar.gz an encoding of the tar
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise PassingError(
                f"the server answers a web page instead of the file, such as the login page of a network{self._web.way}"
            )
        if encoding:
            if encoding not in _ENCODINGS:
                raise PassingError(f"the answer is compressed by {quoted(encoding)}, although told not to{self._web.way}")
            return self._size is None and self._artefact.url.endswith((".gz", ".tgz"))  # see above
        self._learn_size(told)
        if told and told != str(self._size):
            raise self._wrong_size(f"has {told} bytes")
        return True

    async def _receive(self, response: httpx.Response, part: _Part, *, raw: bool) -> bool:
        """Append a body. Return False if it has more bytes than the file."""
        async for chunk in self._web.body(response, raw=raw):
            if part.size + len(chunk) > self._most:
                return False
            await part.append(chunk)
            self._on_bytes(part.size)
        if self._size is not None and part.size < self._size:
            raise PassingError(f"the connection was closed after {part.size} of {self._size} bytes{self._web.way}")
        return True

    def _note(self, part: _Part) -> None:
        sidecar = _Sidecar(url=self._artefact.url, sha256=self._artefact.sha256, etag=part.etag)
        write_atomically(sidecar_path(self._target), msgspec.json.encode(sidecar))

    def _learn_size(self, told: str) -> None:
        """Take the size that a server tells, if the manifest tells none."""
        if self._size is None and re.fullmatch(r"[0-9]{1,18}", told) and int(told) <= _MAX_UNKNOWN_BYTES:
            self._size = int(told)

    def _wrong_size(self, problem: str) -> VerificationError:
        says = f"the manifest says {self._artefact.size}" if self._artefact.size else f"at most {self._most} are expected"
        return VerificationError(f"{self._web.name(self._artefact.url)} {problem}, but {says}; {_CHANGED}")


def _encoding(response: httpx.Response) -> str:
    """Return the encoding of the body; "" for none."""
    encoding: str = response.headers.get("Content-Encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def _strong_etag(response: httpx.Response) -> str:
    """Return the ETag; "" if it is weak. A weak one does not promise equal bytes, so a server never continues for it."""
    etag: str = response.headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag
