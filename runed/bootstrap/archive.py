"""Extracts the engine's archive without harm to other files, and swaps the folder in as a whole.

The hash of an archive was verified before. Its members are checked even so: the user's own manifest may name any archive.
"""

from __future__ import annotations

import errno
import gzip
import os
import posixpath
import shutil
import stat
import sys
import tarfile
from pathlib import Path, PurePosixPath

from runed.bootstrap.disk import require_space
from runed.errors import ArchiveError, BootstrapError, RunedError, quoted
from runed.files import sync_path
from runed.os_errors import forbids_programs, naming, noexec

MAX_MEMBERS = 10_000
"""Most members of an archive. An official one has about 60."""

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Most bytes of the headers of an archive, which are kept in memory."""

_CHECK = "check the manifest it came from"

_FAULTS_OF_AN_ARCHIVE = {
    *(errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ELOOP, errno.EMLINK),
    *(errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR),
}
"""Error numbers of names that no file can have beside the others of its archive."""


class _Stream(gzip.GzipFile):
    """The uncompressed archive. tarfile reads a header whole, however large it claims to be, so a budget bounds these reads.

    Attributes:
        budget: The bytes that may still be read; seeking is free.
    """

    budget = MAX_HEADER_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.budget:
            raise ArchiveError(f"the archive of the engine has headers of more than {MAX_HEADER_BYTES:,} bytes; {_CHECK}")
        self.budget -= size
        return super().read(size)


def extract(archive: Path, folder: Path) -> None:
    """Extract a tar.gz into a new folder, whose parent must exist, and sync it to the disk.

    Links are kept, since the official archives need theirs (`libllama.so -> libllama.so.0`).

    Raises:
        ArchiveError: It is not a tar.gz, or is cut short; or a member is not a file, directory or link, would leave the
            folder, or is in the way of another one.
        DiskSpaceError: There is no room for its content.
    """
    folder.mkdir(mode=0o700)
    try:
        with naming(folder), _Stream(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members = _members(tar, folder)
            _check_members(members)
            stream.budget = sys.maxsize
            _extract(tar, members, folder)
    except RunedError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            if error.errno not in _FAULTS_OF_AN_ARCHIVE:
                raise
            error = tarfile.TarError(f"{error.strerror} ({error.filename})")
        # tarfile and zlib raise a dozen kinds of errors at what is no archive, such as KeyError and OverflowError.
        raise ArchiveError(f"the archive of the engine is broken: {str(error) or type(error).__name__}; {_CHECK}") from error
    _sync_tree(folder)


def add_libraries(archive: Path, folder: Path) -> None:
    """Extract a tar.gz, and put its files beside those of a folder, whatever directories they are in.

    A file that is there already stays.

    Raises:
        ArchiveError: As `extract`; or a link leads to another directory.
        DiskSpaceError: There is no room for its content.
    """
    extracted = folder / ".libraries"
    extract(archive, extracted)
    for root, _, names in os.walk(extracted):
        for path in (Path(root, name) for name in names):
            # The link would lead elsewhere from its new place.
            if path.is_symlink() and len(path.readlink().parts) > 1:
                raise _leaving(path.name)
            if not os.path.lexists(folder / path.name):
                path.rename(folder / path.name)
    shutil.rmtree(extracted)
    sync_path(folder)


def place_program(file: Path, folder: Path, executable: PurePosixPath) -> None:
    """Put an engine that is a single file into a new folder, at the path `executable`, and sync it to the disk."""
    target = folder / executable
    target.parent.mkdir(mode=0o700, parents=True)
    shutil.copyfile(file, target)
    target.chmod(0o700)
    _sync_tree(folder)


def check_executable(folder: Path, executable: PurePosixPath) -> Path:
    """Return the path of the program in an extracted folder; `executable` is its path in there.

    Raises:
        ArchiveError: The folder does not hold the program.
        BootstrapError: Its file system runs no programs.
    """
    path = folder / executable
    if path.is_file() and forbids_programs(path):
        raise BootstrapError(f"{path} cannot be run: {noexec(path)}; set RUNED_HOME to a directory elsewhere")
    if not is_executable(path):
        raise ArchiveError(f"the archive of the engine holds no executable {executable}; check `exec` in the manifest")
    return path


def is_executable(path: Path) -> bool:
    """Return whether a path is a file that this user may run."""
    return path.is_file() and os.access(path, os.X_OK)


def swap_in(fresh: Path, place: Path, retired: Path) -> None:
    """Replace an old folder by a finished one. The old folder waits in `retired`, and is put back if this fails.

    If this process dies in between, `recover` puts the old folder back.
    """
    had_old = place.exists()
    if had_old:
        place.rename(retired)
    try:
        fresh.rename(place)
    except OSError:
        if had_old:
            retired.rename(place)
        raise
    sync_path(place.parent)
    shutil.rmtree(retired, ignore_errors=True)


def recover(fresh: Path, place: Path, retired: Path) -> bool:
    """Clean up after a process that died in `extract` or `swap_in`. Return whether the old folder was put back."""
    if interrupted := retired.exists() and not place.exists():
        retired.rename(place)
    shutil.rmtree(retired, ignore_errors=True)
    shutil.rmtree(fresh, ignore_errors=True)
    return interrupted


def _members(tar: tarfile.TarFile, folder: Path) -> list[tarfile.TarInfo]:
    """Read the headers. Stop at the first one after which the content has no room in the folder."""
    members: list[tarfile.TarInfo] = []
    total, last = 0, -1
    for member in tar:
        # Without these bounds, a header that points back to itself would be read for ever (CVE-2025-8194).
        if member.size < 0 or member.offset <= last or len(members) >= MAX_MEMBERS:
            raise ArchiveError(f"the archive of the engine has more than {MAX_MEMBERS:,} members, or a false size; {_CHECK}")
        last = member.offset
        total += member.size
        require_space(folder, total, "extracting the engine")
        members.append(member)
    return members


def _extract(tar: tarfile.TarFile, members: list[tarfile.TarInfo], folder: Path) -> None:
    """Extract checked members as files of this user, without rights for others."""
    for member in members:
        member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
        member.mode = 0o700 if member.isdir() or member.mode & stat.S_IXUSR else 0o600
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, members, filter="data")
    else:  # Python before 3.11.4, such as Debian 12's, has no filters; `_check_members` is stricter than they are
        tar.extractall(folder, members)  # noqa: S202 # checked


def _check_members(members: list[tarfile.TarInfo]) -> None:
    """Refuse a member that would leave the folder, is in the way of another one, or whose path leads through a link.

    This is stricter than `filter="data"`, which followed links wrongly in several releases of Python (CVE-2025-4517).
    """
    links = {posixpath.normpath(member.name) for member in members if member.issym()}
    places: dict[str, tarfile.TarInfo] = {}
    for member in members:
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise ArchiveError(f"the archive of the engine holds {quoted(member.name)}, which is no file, directory or link")
        _check_path(member.name, member.name, links)
        _check_place(member, places)
        if member.issym():
            _check_path(member.name, posixpath.join(posixpath.dirname(member.name), member.linkname), links)
        elif member.islnk():
            _check_path(member.name, member.linkname, links)
            # A hard link to a symbolic link is the same link in another folder. From there it leads elsewhere.
            if posixpath.normpath(member.linkname) in links:
                raise _leaving(member.name)
            target = places.get(posixpath.normpath(member.linkname))
            if target is None or target is member or target.isdir():
                raise ArchiveError(
                    f"the archive of the engine holds {quoted(member.name)}, a hard link to {quoted(member.linkname)}, which "
                    f"is no file before it; {_CHECK}"
                )


def _check_place(member: tarfile.TarInfo, places: dict[str, tarfile.TarInfo]) -> None:
    """Refuse a member in the place of an earlier one, or below one that is no directory. `places` has the earlier ones."""
    name = posixpath.normpath(member.name)
    above = [str(parent) for parent in PurePosixPath(name).parents]
    other = places.get(name)
    if any(not places[parent].isdir() for parent in above if parent in places) or not (
        other is None or (other.isdir() and member.isdir())
    ):
        raise ArchiveError(
            f"the archive of the engine holds {quoted(member.name)}, which is in the way of another file; {_CHECK}"
        )
    places[name] = member


def _check_path(name: str, path: str, links: set[str]) -> None:
    """Refuse a path that leaves the folder or leads through a link. The member `name` has this path."""
    plain = PurePosixPath(posixpath.normpath(path))
    through = {posixpath.normpath(parent) for parent in PurePosixPath(path).parents} | {str(parent) for parent in plain.parents}
    if path.startswith("/") or plain.parts[:1] == ("..",) or through & links:
        raise _leaving(name)


def _leaving(name: str) -> ArchiveError:
    return ArchiveError(
        f"the archive of the engine holds {quoted(name)}, which may lead out of its folder; it is not extracted"
    )


def _sync_tree(folder: Path) -> None:
    """Sync a folder to the disk. After a power cut, its marker must not be there without its files."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if stat.S_ISREG(path.lstat().st_mode):
                sync_path(path)
        sync_path(Path(root))
