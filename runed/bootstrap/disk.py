"""The disk of an installation: the hash of a large file, free space, and errors with a remedy."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runed.errors import BootstrapError, DiskSpaceError
from runed.files import open_regular, run_in_thread
from runed.os_errors import FULL, mount_point, reason_of

_HASH_BYTES = 1024 * 1024
"""Bytes that are read and hashed at once. A cancel waits for one such step."""


async def hash_rest(file: BinaryIO) -> hashlib._Hash:
    """Return the SHA-256 of an open file from its current position to its end."""
    digest = hashlib.sha256()

    def step() -> int:
        data = file.read(_HASH_BYTES)
        digest.update(data)
        return len(data)

    while await run_in_thread(step):
        pass
    return digest


async def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with os.fdopen(open_regular(path), "rb") as file:
        return (await hash_rest(file)).hexdigest()


def require_space(directory: Path, needed: int, purpose: str) -> None:
    """Check that the disk of a directory has room for `needed` bytes, before a long work, such as "extracting the engine".

    Raises:
        DiskSpaceError: There is less room.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DiskSpaceError(
            f"{purpose} needs {_megabytes(needed)} in {directory}, but only {_megabytes(free)} are free; "
            f"make room on the file system at {mount_point(directory)}, or set RUNED_HOME to a disk with more space"
        )


@contextmanager
def file_errors(action: str) -> Iterator[None]:
    """Turn an `OSError` of the block, whose work `action` names, such as "write the model", into an error with a remedy.

    Raises:
        DiskSpaceError: The disk is full.
        BootstrapError: The file system refused something else.
    """
    try:
        yield
    except OSError as error:
        place = f"{error.filename2 or error.filename or 'RUNED_HOME'}{reason_of(error)}"
        if error.errno in FULL:
            raise DiskSpaceError(
                f"cannot {action}: {error.strerror} ({place}); make room or raise the limit, and try again: "
                "finished parts are kept"
            ) from error
        raise BootstrapError(
            f"cannot {action}: {error.strerror or type(error).__name__} ({place}); check the permissions of RUNED_HOME"
        ) from error


def _megabytes(count: int) -> str:
    """Format bytes in MB of 1,000,000 bytes, as disks are sold."""
    return f"{count / 1e6:,.1f} MB"
