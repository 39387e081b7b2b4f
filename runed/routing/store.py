"""The centroid set of one model: received whole or not at all, stored on disk, and restored at the start."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np

from runed.domain.requests import Centroid, CentroidHeader
from runed.errors import (
    BadCentroidsError,
    CentroidStoreError,
    DeadlineExceededError,
    NoCentroidSetError,
    QueueFullError,
)
from runed.files import remove_unfinished, run_in_thread
from runed.log import get_logger, log_refusal
from runed.os_errors import explain
from runed.paths import ensure_private_dir
from runed.processes import release_free_memory
from runed.routing.centroids import MAX_SET_BYTES, CentroidSet, block_rows
from runed.routing.set_file import IncomingFile, UnusableFileError, load
from runed.turns import breathe

MAX_NAME_BYTES = 256
"""Most UTF-8 bytes of a version, or of the name of a preset."""

RECEIVE_SECONDS = 120.0
"""Seconds that a sender may take for a set. Another sender waits meanwhile."""

TURN_SECONDS = 30.0
"""Seconds that a sender waits while another set is being received. After that, it is told to try again."""

RETRY_SECONDS = 5.0
"""Seconds after which such a sender is told to try again."""

_log = get_logger(__name__)


class CentroidStore:
    """The installed set, and its replacement. For use in one event loop.

    Args:
        path: The file of the set. Its directory is made with the first set.
        dim: The number of values of the model's vectors.
        model: The identity of the model. Centroids of another model mean nothing to its vectors.
    """

    def __init__(self, path: Path, *, dim: int, model: str) -> None:
        self._path = path
        self._dim = dim
        self._model = model
        self._installed: CentroidSet | None = None
        self._turn = asyncio.Lock()

    @property
    def version(self) -> str:
        """The name of the installed set; "" if there is none."""
        return self._installed.version if self._installed else ""

    def current(self) -> CentroidSet:
        """Return the installed set. It stays usable after it was replaced.

        Raises:
            NoCentroidSetError: There is none.
        """
        if self._installed is None:
            raise NoCentroidSetError(
                "there is no centroid set to route by; push one with SetCentroids, or leave with_route out"
            )
        return self._installed

    def restore(self) -> None:
        """Install the set on disk, or remove it if it is damaged or for another model. Block while the set is verified."""
        try:
            remove_unfinished(self._path)
            try:
                self._installed = load(self._path, dim=self._dim, model=self._model)
            except FileNotFoundError:
                return
            except UnusableFileError as error:
                _log.warning("the centroid set on disk is removed", problem=str(error))
                self._path.unlink()
                return
        except OSError as error:
            _log.warning("the centroid set on disk cannot be used", problem=error.strerror)
            return
        _log.info("centroid set restored", version=self.version, nlist=self._installed.nlist)

    async def install(self, header: CentroidHeader, batches: AsyncIterator[Iterable[Centroid]]) -> str:
        """Receive a set, and replace the installed set by it. If anything fails, the installed set stays.

        Args:
            header: The sender's description of the set.
            batches: The centroids in the order of their ids. Its errors are passed on.

        Returns:
            The name of the set.

        Raises:
            BadCentroidsError: The set is not complete, or not for this model; the text tells the reason.
            QueueFullError: Other sets were being received for `TURN_SECONDS`.
            DeadlineExceededError: The sender took longer than `RECEIVE_SECONDS`.
            CentroidStoreError: The set cannot be written to the disk, or does not fit into memory.
        """
        self._check(header)
        async with self._one_at_a_time():
            try:
                await self._install(header, batches)
            except TimeoutError:
                raise DeadlineExceededError(
                    f"the centroid set did not come within {RECEIVE_SECONDS:g} s; send it faster, in messages of up to 4 MiB"
                ) from None
            except OSError as error:
                error.filename = os.fspath(self._path.parent)
                raise CentroidStoreError(
                    f"the centroid set cannot be kept in {explain(error)}; "
                    "the set before it stays; make room, and push it again"
                ) from None
            except MemoryError:
                raise CentroidStoreError(
                    f"the system refused the memory for {header.nlist} centroids; the set before it stays; "
                    "free memory or raise the daemon's limit (ulimit -v), and push it again"
                ) from None
        log_refusal(_log, "centroid set installed", level=logging.INFO, version=self.version, nlist=header.nlist)
        release_free_memory()  # frees the memory of the messages
        return self.version

    def _check(self, header: CentroidHeader) -> None:
        facts = {"dim": str(header.dim), "model_dim": str(self._dim)}
        if header.dim != self._dim:
            raise BadCentroidsError(
                f"the centroids have {header.dim} values each, but the vectors of this model have {self._dim}; "
                "make the set of vectors of this model",
                metadata=facts,
            )
        limit = MAX_SET_BYTES // (4 * self._dim)
        if not 1 <= header.nlist <= limit:
            raise BadCentroidsError(
                f"a set of this model has 1 to {limit} centroids, not {header.nlist}",
                metadata={"nlist": str(header.nlist), "limit": str(limit)},
            )
        for name, value in (("version", header.version), ("preset", header.preset)):
            if len(value.encode()) > MAX_NAME_BYTES or "\0" in value:
                raise BadCentroidsError(
                    f"the {name} of the set is too long or has a NUL; it may have {MAX_NAME_BYTES} bytes",
                    metadata={"limit": str(MAX_NAME_BYTES)},
                )

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncGenerator[None]:
        """Wait for the turn of this sender. Several sets at once would multiply the memory and the disk space."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise QueueFullError(
                f"other centroid sets have been coming for {TURN_SECONDS:g} s; try again later", retry_after=RETRY_SECONDS
            ) from None
        try:
            yield
        finally:
            self._turn.release()

    async def _install(self, header: CentroidHeader, batches: AsyncIterator[Iterable[Centroid]]) -> None:
        ensure_private_dir(self._path.parent)
        incoming = IncomingFile(self._path, header, model=self._model)
        try:
            async with asyncio.timeout(RECEIVE_SECONDS):
                await self._receive(header, batches, incoming)
            await run_in_thread(partial(self._publish, incoming, _version(header, incoming.content.version)))
        finally:
            await run_in_thread(incoming.discard)

    async def _receive(
        self, header: CentroidHeader, batches: AsyncIterator[Iterable[Centroid]], incoming: IncomingFile
    ) -> None:
        """Gather centroids into blocks whose size does not depend on the sender's messages."""
        block = np.empty((block_rows(self._dim), self._dim), "<f4")
        filled = count = 0
        async for batch in batches:
            for centroid in batch:
                self._check_next(centroid, count, header.nlist)
                block[filled] = np.frombuffer(centroid.values, "<f4")
                filled += 1
                count += 1
                await breathe()
                if filled == len(block):
                    await run_in_thread(partial(incoming.append, block))
                    filled = 0
        if count < header.nlist:
            raise BadCentroidsError(
                f"the set ended after {count} of {header.nlist} centroids; send all that the header tells",
                metadata={"nlist": str(header.nlist), "received": str(count)},
            )
        if filled:
            await run_in_thread(partial(incoming.append, block[:filled]))

    def _check_next(self, centroid: Centroid, count: int, nlist: int) -> None:
        """Refuse a centroid that is not the next one of the set."""
        if count == nlist:
            raise BadCentroidsError(
                f"more centroids came than the {nlist} that the header tells", metadata={"nlist": str(nlist)}
            )
        if centroid.id != count:
            raise BadCentroidsError(
                f"centroid {centroid.id} came where {count} was next; send them in the order of their ids, from 0 on",
                metadata={"id": str(centroid.id), "expected": str(count)},
            )
        if len(centroid.values) != 4 * self._dim:
            raise BadCentroidsError(
                f"centroid {centroid.id} has {len(centroid.values) // 4} values, not {self._dim}",
                metadata={"id": str(centroid.id), "values": str(len(centroid.values) // 4), "dim": str(self._dim)},
            )

    def _publish(self, incoming: IncomingFile, version: str) -> None:
        # No cancel can come between these two lines, so the next start restores the set that is served.
        self._installed = incoming.publish(version)


def _version(header: CentroidHeader, computed: str) -> str:
    """Return the name of a complete set.

    Raises:
        BadCentroidsError: The sender's name is not that of the content.
    """
    if header.preset and header.version and header.version != computed:
        raise BadCentroidsError(
            f"the version {header.version} is not that of the received content, {computed}: the set was changed on "
            "its way, or is not hashed as docs/protocol.md tells",
            metadata={"version": header.version, "computed": computed},
        )
    return header.version or computed
