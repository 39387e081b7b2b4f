"""Whether other users have a hand in a path. Root is trusted everywhere, since it can do everything anyway."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from runed.errors import ForeignPathError

_MAX_LINKS = 40
"""Most links that a path may lead through, as in the kernel."""

_REMEDY = "set RUNED_HOME to a place of your own"

_PARENT_REMEDY = f"{_REMEDY}, or set RUNED_TRUST_PARENTS=1 if you trust them"


def resolve_trusted(path: Path, *, trust_parents: bool = False) -> Path:
    """Return a path without links. Check that no other user can replace a directory or a link on the way to it.

    Each directory above the path must belong to this user or root. Others may write to it only if it is sticky, like `/tmp`.
    The group of this user's login may, and so may that of this process: where the umask is 002, a user's directories are open
    to a group that has no other member. `newgrp` changes only the second.
    The end of the path itself is not checked, and need not exist.

    Args:
        path: An absolute path.
        trust_parents: Whether to trust everybody who can write to the directories above it, or owns them.

    Raises:
        ForeignPathError: Another user can replace a part of the path, or the path cannot be read.
    """
    place, pending, links = Path("/"), list(reversed(path.parts[1:])), 0
    try:
        while pending:
            if not trust_parents:
                _check_parent(path, place)
            if (name := pending.pop()) == "..":
                place = place.parent
                continue
            place /= name
            info = place.lstat()
            if stat.S_ISLNK(info.st_mode):
                _check_owner(place, info.st_uid)
                links += 1
                if links > _MAX_LINKS:
                    raise ForeignPathError(f"{path} leads through more than {_MAX_LINKS} links; {_REMEDY}")
                target = place.readlink()
                pending += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                place = Path("/") if target.is_absolute() else place.parent
    except (FileNotFoundError, NotADirectoryError):
        return place.joinpath(*reversed(pending))
    except OSError as error:
        raise ForeignPathError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from None
    return place


def check_contents(directory: Path, names: frozenset[str] | None = None) -> None:
    """Check that the entries of a directory belong to this user or root.

    Args:
        directory: The directory. A missing one is fine.
        names: The names of the entries to check; None means all.

    Raises:
        ForeignPathError: An entry belongs to another user, or the directory cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if names is None or entry.name in names:
                    _check_owner(Path(entry.path), entry.stat(follow_symlinks=False).st_uid)
    except FileNotFoundError:  # the directory, or an entry that another process has just removed
        return
    except OSError as error:
        raise ForeignPathError(f"{directory} cannot be read: {error.strerror}; {_REMEDY}") from None


def check_file(path: Path, *, trust_parents: bool = False) -> None:
    """Check that no other user can change a file. A missing one is fine.

    Args:
        path: An absolute path, which may be a link.
        trust_parents: As for `resolve_trusted`.

    Raises:
        ForeignPathError: The file belongs to another user than this one or root, or others can write to it or replace it.
    """
    resolve_trusted(path, trust_parents=trust_parents)
    try:
        info = path.stat()
    except OSError:  # an error of the reader then
        return
    if not stat.S_ISREG(info.st_mode):  # neither: the reader takes regular files alone, and /dev/null has to stay open to all
        return
    _check_owner(path, info.st_uid)
    if is_open_to_writers(info):
        raise ForeignPathError(
            f"others can write to {path} (mode {mode_of(info)}), so it is not read; check it and run `chmod go-w {path}`"
        )


def is_trusted(uid: int) -> bool:
    """Return whether files of a user can be trusted: those of this user, and those of root."""
    # In a user namespace without a root, all files of the real root belong to another user, and so does "/".
    return uid in {os.geteuid(), 0, Path("/").stat().st_uid}


def is_open_to_writers(info: os.stat_result) -> bool:
    """Return whether others than the owner and this user's own groups can write to a file or directory."""
    by_group = info.st_mode & stat.S_IWGRP and info.st_gid not in {os.getegid(), _login_group()}
    return bool(by_group or info.st_mode & stat.S_IWOTH)


def _login_group() -> int | None:
    """Return the group that this user has after a login; None for a user whom the system does not know."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_gid
    except KeyError:
        return None


def mode_of(info: os.stat_result) -> str:
    """Return the mode for people, such as "0755"."""
    return f"{stat.S_IMODE(info.st_mode):04o}"


def _check_parent(path: Path, parent: Path) -> None:
    info = parent.lstat()
    if not stat.S_ISDIR(info.st_mode):  # as with HOME=/dev/null; the look below it tells why, and nobody may chmod /dev/null
        return
    if not is_trusted(info.st_uid):
        raise ForeignPathError(f"{parent} belongs to user id {info.st_uid}, who could replace {path}; {_PARENT_REMEDY}")
    if is_open_to_writers(info) and not info.st_mode & stat.S_ISVTX:
        raise ForeignPathError(
            f"others can write to {parent} (mode {mode_of(info)}), and could replace {path}; run `chmod go-w {parent}`, "
            f"{_PARENT_REMEDY}"
        )


def _check_owner(path: Path, uid: int) -> None:
    if not is_trusted(uid):
        raise ForeignPathError(
            f"{path} belongs to user id {uid}, and you are user id {os.geteuid()}, so it is not used; remove it, or {_REMEDY}"
        )
