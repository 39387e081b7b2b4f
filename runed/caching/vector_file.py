"""The SQLite file of the disk cache: which vector is known under which key, least recently used first out.

Whoever reads the file without the secret learns how many vectors it holds and how long they are, no more. A key is stored as
its HMAC. A vector is stored masked, since whoever guesses a text could embed it too and look for the same values.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import secrets
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from runed.caching.entry import CachedVector
from runed.locking import LockFile
from runed.log import get_logger
from runed.paths import ensure_private_dir

SCHEMA_VERSION = 1
"""Another number in a file's `user_version` means that it is not for this version of runed."""

SECRET_BYTES = 32

PAGE_BYTES = 4096
WAL_PAGES = 1000
"""The pages after which the write-ahead log is written back and begins anew."""

SPARE_BYTES = 8 * 1024 * 1024
"""What is kept free below the bound: for the write-ahead log, and for what one transaction adds to both."""

RECENCY_SECONDS = 600
"""How far the order of use may be off. An entry's time is not written more often, as each writing costs up to three pages."""

READ_KEYS = 100
"""How many keys one query looks up; SQLite takes up to 999 everywhere."""

EVICTION_ROWS = 64
"""How many entries go at a time: few, because readers wait for it."""

BUSY_SECONDS = 0.1
"""How long to wait for another program that has locked the file; runed's own daemons do not meet here (`LockFile`)."""

_SCHEMA = """
CREATE TABLE about (identity BLOB NOT NULL);
CREATE TABLE vector (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, value BLOB NOT NULL);
CREATE INDEX vector_used ON vector (used);
"""
_PRAGMAS = (
    "locking_mode = EXCLUSIVE",  # first; a reader from outside would keep the write-ahead log from ever beginning anew
    f"page_size = {PAGE_BYTES}",
    "auto_vacuum = INCREMENTAL",  # so that a file that is larger than a new bound can shrink
    "journal_mode = WAL",
    "synchronous = NORMAL",  # a power cut may cost the last vectors, never the file
    f"wal_autocheckpoint = {WAL_PAGES}",
    f"journal_size_limit = {WAL_PAGES * PAGE_BYTES}",
    "cache_size = -4096",  # KiB; more than any transaction, which would spill into the write-ahead log twice otherwise
    "cell_size_check = ON",
    "trusted_schema = OFF",
)
_DAMAGE = {
    sqlite3.SQLITE_ERROR,  # a table or column is missing
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_NOTADB,
}
_NONCE_BYTES = 16
_CHECKSUM = struct.Struct("<I")
_COUNTS = struct.Struct("<II")

_log = get_logger(__name__)


def is_damage(error: Exception) -> bool:
    """Whether SQLite complains of what is in the file, so that only a new one helps."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE  # the low byte is the primary code


def load_secret(path: Path) -> bytes:
    """Give the secret of this installation; the first who asks makes it.

    Args:
        path: The file, of mode 0600; its directory must exist. A file of another length is made anew.

    Returns:
        `SECRET_BYTES` random bytes, the same for all who ask.

    Raises:
        OSError: The file cannot be read or written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        # Two who ask at once must agree; and what a crash has left half written is completed by the next.
        fcntl.flock(file, fcntl.LOCK_EX)
        os.fchmod(file.fileno(), 0o600)
        secret = os.pread(file.fileno(), SECRET_BYTES + 1, 0)
        if len(secret) != SECRET_BYTES:
            secret = secrets.token_bytes(SECRET_BYTES)
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), secret, 0)
            os.fsync(file.fileno())
        return secret


class VectorFile:
    """The open file; for one thread. Each method may raise `sqlite3.Error` or `OSError`, and leaves no half transaction.

    Args:
        path: The file; its directory is made if need be, private. A lock file stands beside it.
        secret: The file of the secret; its directory likewise.
        fingerprint: The space of the vectors; a file of another one, or one that cannot be used, is replaced by an empty one.
        max_bytes: The bound of the file and its write-ahead log together; more than `SPARE_BYTES`.

    Raises:
        ForeignPathError: A directory belongs to somebody else.
        BlockingIOError: Another process has the file open.
        OSError, sqlite3.Error: The file cannot be made or opened.
    """

    def __init__(self, path: Path, secret: Path, *, fingerprint: str, max_bytes: int) -> None:
        self._path = path
        self._max_pages = (max_bytes - SPARE_BYTES) // PAGE_BYTES
        ensure_private_dir(path.parent)
        ensure_private_dir(secret.parent)
        self._lock = LockFile(path.with_name(f"{path.name}.lock"))
        # SQLite's own locks are not enough: they go with the file where it is replaced.
        if not self._lock.try_acquire():
            raise BlockingIOError(errno.EWOULDBLOCK, "another process has the cache open")
        with ExitStack() as stack:
            stack.callback(self._lock.release)
            self._secret = load_secret(secret)
            # Of the secret too: with another one, no key would ever be found again.
            self._identity = hmac.digest(self._secret, b"fingerprint:" + fingerprint.encode(), "sha256")
            self._connection = self._open() or self._create()
            stack.pop_all()

    @property
    def size(self) -> int:
        """The bytes of the file and its write-ahead log."""
        size = 0
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                size += self._path.with_name(self._path.name + suffix).stat().st_size
        return size

    def shrink(self) -> None:
        """Give back what is beyond the bound, for a file that was made with a larger one."""
        self._evict()
        if self._pragma("page_count") <= self._max_pages:
            return
        while self._pragma("freelist_count"):
            self._connection.execute(f"PRAGMA incremental_vacuum({EVICTION_ROWS})").fetchall()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, CachedVector]:
        """Look vectors up.

        Returns:
            What is there, whole.
        """
        found: dict[bytes, CachedVector] = {}
        for start in range(0, len(keys), READ_KEYS):
            names = {self._name(key): key for key in keys[start : start + READ_KEYS]}
            marks = ",".join("?" * len(names))
            rows = self._connection.execute(f"SELECT key, value FROM vector WHERE key IN ({marks})", list(names))  # noqa: S608 # nothing but marks
            for name, sealed in rows.fetchall():
                if name in names and (value := self._unseal(name, sealed)) is not None:
                    found[names[name]] = value
        return found

    def write(self, values: Mapping[bytes, CachedVector], used: Iterable[bytes]) -> None:
        """Keep vectors and note which others were used, in one transaction; the vectors used longest ago make room.

        Args:
            values: The vectors; what is there under the same key is replaced.
            used: The keys of those used; who is not there is no matter.
        """
        self._evict()
        now = int(time.time())
        names = [(self._name(key), value) for key, value in values.items()]
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT OR REPLACE INTO vector (key, used, value) VALUES (?, ?, ?)",
                [(name, now, self._seal(name, value)) for name, value in names],
            )
            self._connection.executemany(
                "UPDATE vector SET used = ? WHERE key = ? AND used < ?",
                [(now, self._name(key), now - RECENCY_SECONDS) for key in used],
            )

    def start_anew(self) -> None:
        """Replace the file by an empty one."""
        self._connection.close()
        self._connection = self._create()

    def close(self) -> None:
        """Write the log back and close the file."""
        self._connection.close()
        self._lock.release()

    def _open(self) -> sqlite3.Connection | None:
        """Open what is there, or give None if it is of no use."""
        if not self._path.exists():
            return None
        try:
            with ExitStack() as stack:
                connection = self._connect()
                stack.callback(connection.close)
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                rows = connection.execute("SELECT identity FROM about").fetchall() if version == SCHEMA_VERSION else []
                if rows == [(self._identity,)]:
                    stack.pop_all()
                    return connection
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            _log.warning("the disk cache is damaged and begins anew", problem=error.sqlite_errorname)
        else:
            _log.info("the disk cache is of another model or version of runed and begins anew")
        return None

    def _create(self) -> sqlite3.Connection:
        # The file last: a log that outlives it would be read into the next file of this name.
        for suffix in ("-wal", "-shm", "-journal", ""):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        with ExitStack() as stack:
            connection = self._connect()
            stack.callback(connection.close)
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.strip().splitlines():
                    connection.execute(statement)
                connection.execute("INSERT INTO about (identity) VALUES (?)", (self._identity,))
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            stack.pop_all()
        return connection

    def _connect(self) -> sqlite3.Connection:
        # SQLite would make the file with the mode of the umask; its companions get the file's.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        with ExitStack() as stack:
            connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            stack.callback(connection.close)
            connection.text_factory = bytes  # no text is stored: what is read as one is damage, not to be decoded
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").fetchall()
            stack.pop_all()
        return connection

    def _evict(self) -> None:
        """Drop entries until what comes next fits."""
        while self._pragma("page_count") - self._pragma("freelist_count") > self._max_pages:
            dropped = self._connection.execute(
                "DELETE FROM vector WHERE id IN (SELECT id FROM vector ORDER BY used, id LIMIT ?)", (EVICTION_ROWS,)
            ).rowcount
            if not dropped:  # the pages belong to nothing: the file must be damaged
                self.start_anew()

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _name(self, key: bytes) -> bytes:
        return hmac.digest(self._secret, key, "sha256")

    def _seal(self, name: bytes, value: CachedVector) -> bytes:
        content = _COUNTS.pack(value.tokens, value.total_tokens) + value.vector
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._mask(nonce, _CHECKSUM.pack(_checksum(name, content)) + content)

    def _unseal(self, name: bytes, sealed: object) -> CachedVector | None:
        """Give what was sealed under the same name, or None if it is not whole."""
        if not isinstance(sealed, bytes) or len(sealed) < _NONCE_BYTES + _CHECKSUM.size + _COUNTS.size:
            return None
        opened = self._mask(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:])
        content = opened[_CHECKSUM.size :]
        if _CHECKSUM.unpack_from(opened)[0] != _checksum(name, content):
            return None
        tokens, total_tokens = _COUNTS.unpack_from(content)
        return CachedVector(content[_COUNTS.size :], tokens, total_tokens)

    def _mask(self, nonce: bytes, data: bytes) -> bytes:
        """Hide data, or uncover it: XOR with a stream that nobody can make without the secret, another for each nonce."""
        stream = hashlib.shake_128(self._secret + nonce).digest(len(data))
        return (np.frombuffer(data, np.uint8) ^ np.frombuffer(stream, np.uint8)).tobytes()


def _checksum(name: bytes, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(name))  # of the name too: an index that is damaged may lead to another's row
