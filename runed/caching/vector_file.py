"""The SQLite file of the disk cache: vectors by key, of any number of models. The least recently used are dropped first.

A key covers the model, so models need no column of their own. A key is stored as its HMAC. Without the secret, nobody can check
whether a guessed text is in the file.
"""

from __future__ import annotations

import errno
import hmac
import os
import secrets
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from runed.caching.entry import CachedVector
from runed.files import load_secret, make_way, write_atomically
from runed.locking import LockFile
from runed.log import get_logger
from runed.paths import ensure_private_dir

SCHEMA_VERSION = 2
"""The `user_version` of the file. A file with another number is for another version of runed, and is replaced."""

SECRET_BYTES = 32
"""The length of the secret."""

PAGE_BYTES = 4096
"""The size of a page of the file."""

WAL_PAGES = 1000
"""Pages in the write-ahead log at which SQLite writes it back and begins it anew."""

SPARE_BYTES = 8 * 1024 * 1024
"""Bytes kept free below the bound: for the write-ahead log, and for what one transaction adds to file and log."""

RECENCY_SECONDS = 600
"""Seconds by which a stored time of use may be too old. Writing a time costs up to three pages, so a newer one is skipped."""

READ_KEYS = 100
"""Keys that one query looks up. Every SQLite accepts 999."""

EVICTION_ROWS = 64
"""Entries that are dropped at a time. Readers wait meanwhile."""

BUSY_SECONDS = 0.1
"""Seconds to wait for a foreign program that has locked the file. Daemons of runed exclude each other by `LockFile`."""

_SCHEMA = """
CREATE TABLE about (identity BLOB NOT NULL);
CREATE TABLE vector (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, value BLOB NOT NULL);
CREATE INDEX vector_used ON vector (used);
"""
_PRAGMAS = (
    "locking_mode = EXCLUSIVE",  # first; a foreign reader would keep the write-ahead log from ever beginning anew
    f"page_size = {PAGE_BYTES}",
    "auto_vacuum = INCREMENTAL",  # so that the file can shrink if the bound is smaller than before
    "journal_mode = WAL",
    "synchronous = NORMAL",  # a power cut may cost the last vectors, never the file
    f"wal_autocheckpoint = {WAL_PAGES}",
    f"journal_size_limit = {WAL_PAGES * PAGE_BYTES}",
    "cache_size = -4096",  # KiB; more than any transaction, which would otherwise be written to the log twice
    "mmap_size = 0",  # if another process shortened a mapped file, SIGBUS would end the daemon
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
_CHECKSUM = struct.Struct("<I")
_COUNTS = struct.Struct("<II")

_log = get_logger(__name__)


def is_damage(error: Exception) -> bool:
    """Return whether an error is about the content of the file, so that only a new file helps."""
    if isinstance(error, UnicodeDecodeError):  # SQLite's message quotes a damaged name that is not UTF-8
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE  # the low byte is the primary code


class VectorFile:
    """The open file, for one thread. Each method may raise `sqlite3.Error` or `OSError`. None leaves a half transaction.

    Args:
        path: The file. Its directory is made if it is missing, and is private. A lock file lies beside it.
        secret: The file of the secret. It and its directory are made if they are missing.
        max_bytes: Most bytes of the file and its write-ahead log together; more than `SPARE_BYTES`.

    Raises:
        ForeignPathError: A directory, or the secret, belongs to another user.
        BlockingIOError: Another process has the file open.
        OSError, sqlite3.Error: The file cannot be made or opened.
    """

    def __init__(self, path: Path, secret: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_pages = (max_bytes - SPARE_BYTES) // PAGE_BYTES
        ensure_private_dir(path.parent)
        ensure_private_dir(secret.parent)
        self._lock = LockFile(path.with_name(f"{path.name}.lock"))
        # SQLite's own locks are not enough: they are lost when the file is replaced.
        if not self._lock.try_acquire():
            raise BlockingIOError(errno.EWOULDBLOCK, "another process has the cache open")
        with ExitStack() as stack:
            stack.callback(self._lock.release)
            self._secret = _load_secret(secret)
            # With another secret, no key of the file would be found again.
            self._identity = self._name(b"about")
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
        """Free the bytes beyond the bound, for a file that was made with a larger bound."""
        self._evict()
        if self._pragma("page_count") <= self._max_pages:
            return
        while self._pragma("freelist_count"):
            self._connection.execute(f"PRAGMA incremental_vacuum({EVICTION_ROWS})").fetchall()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, CachedVector]:
        """Look vectors up.

        Returns:
            The undamaged vectors that were found, by key.
        """
        found: dict[bytes, CachedVector] = {}
        for start in range(0, len(keys), READ_KEYS):
            names = {self._name(key): key for key in keys[start : start + READ_KEYS]}
            marks = ",".join("?" * len(names))
            rows = self._connection.execute(f"SELECT key, value FROM vector WHERE key IN ({marks})", list(names))  # noqa: S608 # nothing but marks
            for name, row in rows.fetchall():
                if name in names and (value := _decode(name, row)) is not None:
                    found[names[name]] = value
        return found

    def write(self, values: Mapping[bytes, CachedVector], used: Iterable[bytes]) -> None:
        """Store vectors and times of use in one transaction. The least recently used vectors are dropped to make room.

        Args:
            values: The vectors by key. A vector of the same key is replaced.
            used: Keys whose last use is set to now. Unknown keys are ignored.
        """
        self._evict()
        now = self._now()
        names = [(self._name(key), value) for key, value in values.items()]
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT OR REPLACE INTO vector (key, used, value) VALUES (?, ?, ?)",
                [(name, now, _encode(name, value)) for name, value in names],
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
        """Open the file. Return None if there is none, or if it must be replaced."""
        if not self._path.is_file() or any(os.path.lexists(path) and not path.is_file() for path in self._files()):
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
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise
            problem = getattr(error, "sqlite_errorname", type(error).__name__)
            _log.warning("the disk cache is damaged and begins anew", problem=problem)
        else:
            _log.info("the disk cache is of another version of runed, or of another secret, and begins anew")
        return None

    def _create(self) -> sqlite3.Connection:
        # The file is removed last: SQLite would read a remaining log into the next file of this name.
        for path in self._files():
            make_way(path)
            path.unlink(missing_ok=True)
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

    def _files(self) -> list[Path]:
        """Return the paths of the file, as the last one, and of all that SQLite makes beside it."""
        return [self._path.with_name(self._path.name + suffix) for suffix in ("-wal", "-shm", "-journal", "")]

    def _connect(self) -> sqlite3.Connection:
        # SQLite would make the file with the mode of the umask. The files beside it get the mode of the file.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        with ExitStack() as stack:
            connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            stack.callback(connection.close)
            connection.text_factory = bytes  # the file has no text columns: a text in it is damage, which must not be decoded
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").fetchall()
            stack.pop_all()
        return connection

    def _evict(self) -> None:
        """Delete entries until the next transaction fits."""
        while self._pragma("page_count") - self._pragma("freelist_count") > self._max_pages:
            dropped = self._connection.execute(
                "DELETE FROM vector WHERE id IN (SELECT id FROM vector ORDER BY used, id LIMIT ?)", (EVICTION_ROWS,)
            ).rowcount
            if not dropped:  # no entry is left to drop: the file must be damaged
                self.start_anew()

    def _now(self) -> int:
        """Return the time of use to store, in seconds since 1970. It is never before one that is stored already.

        Otherwise, once a clock that was ahead is set right, new entries would be the first to be dropped, and old ones never.
        """
        now, latest = int(time.time()), self._connection.execute("SELECT max(used) FROM vector").fetchone()[0]
        return max(now, latest) if isinstance(latest, int) else now  # of a damaged row it may be anything

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _name(self, key: bytes) -> bytes:
        return hmac.digest(self._secret, key, "sha256")


def _load_secret(path: Path) -> bytes:
    """Read the secret. Make it if it is missing or has a wrong length, which a crash of an older runed could leave."""
    make = partial(secrets.token_bytes, SECRET_BYTES)
    secret = load_secret(path, make)
    if len(secret) != SECRET_BYTES:
        secret = make()
        write_atomically(path, secret)
    return secret


def _encode(name: bytes, value: CachedVector) -> bytes:
    content = _COUNTS.pack(value.tokens, value.total_tokens) + value.vector
    return _CHECKSUM.pack(_checksum(name, content)) + content


def _decode(name: bytes, row: object) -> CachedVector | None:
    """Decode the value of a row. Return None if it is damaged."""
    if not isinstance(row, bytes) or len(row) < _CHECKSUM.size + _COUNTS.size:
        return None
    content = row[_CHECKSUM.size :]
    if _CHECKSUM.unpack_from(row)[0] != _checksum(name, content):
        return None
    tokens, total_tokens = _COUNTS.unpack_from(content)
    return CachedVector(content[_COUNTS.size :], tokens, total_tokens)


def _checksum(name: bytes, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(name))  # the name, too: a damaged index may lead to another row
