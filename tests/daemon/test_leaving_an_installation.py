"""A daemon that ends during an installation: no other process may install before its last thread has finished writing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from runed.locking import LockFile
from runed.paths import Paths
from tests.bootstrap.parts import VERSION_SCRIPT, Release, archive
from tests.bootstrap.site import running_site
from tests.support import RunningDaemon, wait_until

StartDaemon = Callable[..., RunningDaemon]


def test_the_install_lock_is_held_until_the_engine_is_unpacked(start_daemon: StartDaemon, home: Path) -> None:
    paths = Paths(home)
    fresh = paths.bin / ".llama-cpp.new"
    # There are many files, so that a drain and its two cancels come long before the last file is on the disk.
    files = [(f"llama-b1/licence-{number}", b"text") for number in range(2000)]
    with running_site() as site, LockFile(paths.install_lock) as lock:
        release = Release(site, engine=archive(("llama-b1/llama-server", VERSION_SCRIPT), *files))
        daemon = start_daemon(RUNED_LLAMA_SERVER="", RUNED_MODEL="", RUNED_MANIFEST=release.publish())
        wait_until((fresh / "llama-b1" / "licence-10").exists, what="the unpacking")
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lock.try_acquire, what="the lock")
        assert not fresh.exists()
        assert daemon.process.wait(30) == 0
        assert not fresh.exists(), "it wrote without the lock"
        assert not paths.llama_cpp.exists()
