"""Extracts the engine's archive without harm to other files, and swaps the folder in as a whole.

The hash of an archive was verified before. Its members are checked even so: the user's own manifest may name any archive.
"""

from __future__ import annotations

import gzip
import os
import posixpath
import shutil
import stat
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from runed.bootstrap.disk import require_space
from runed.errors import ArchiveError
from runed.files import sync_path


def extract(archive: Path, folder: Path) -> None:
    """Extract a tar.gz into a new folder, whose parent must exist, and sync it to the disk.

    Links are kept, since the official archives need theirs (`libllama.so -> libllama.so.0`).

    Raises:
        ArchiveError: It is not a tar.gz, or is cut short; or a member is not a file, directory or link, or would leave the
            folder.
        DiskSpaceError: There is no room for its content.
    """
    folder.mkdir(mode=0o700)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = tar.getmembers()
            _check_members(members)
            require_space(folder, sum(member.size for member in members), "extracting the engine")
            _extract(tar, members, folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ArchiveError(f"the archive of the engine is broken: {error}; check the manifest it came from") from error
    _sync_tree(folder)


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
    """
    path = folder / executable
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
    """Refuse a member that would leave the folder, or whose path leads through a link of the archive.

    This is stricter than `filter="data"`, which followed links wrongly in several releases of Python (CVE-2025-4517).
    """
    links = {posixpath.normpath(member.name) for member in members if member.issym()}
    for member in members:
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise ArchiveError(f"the archive of the engine holds {member.name!r}, which is no file, directory or link")
        _check_path(member.name, member.name, links)
        if member.issym():
            _check_path(member.name, posixpath.join(posixpath.dirname(member.name), member.linkname), links)
        elif member.islnk():
            _check_path(member.name, member.linkname, links)
            # A hard link to a symbolic link is the same link in another folder. From there it leads elsewhere.
            if posixpath.normpath(member.linkname) in links:
                raise _leaving(member.name)


def _check_path(name: str, path: str, links: set[str]) -> None:
    """Refuse a path that leaves the folder or leads through a link. The member `name` has this path."""
    plain = PurePosixPath(posixpath.normpath(path))
    through = {posixpath.normpath(parent) for parent in PurePosixPath(path).parents} | {str(parent) for parent in plain.parents}
    if path.startswith("/") or plain.parts[:1] == ("..",) or through & links:
        raise _leaving(name)


def _leaving(name: str) -> ArchiveError:
    return ArchiveError(f"the archive of the engine holds {name!r}, which may lead out of its folder; it is not extracted")


def _sync_tree(folder: Path) -> None:
    """Sync a folder to the disk. After a power cut, its marker must not be there without its files."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if stat.S_ISREG(path.lstat().st_mode):
                sync_path(path)
        sync_path(Path(root))
