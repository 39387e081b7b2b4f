"""A daemon whose home was removed or replaced leaves the engine and the files of its successor alone."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runed.backends.engine.backend import EngineBackend
from runed.errors import BackendUnavailableError
from runed.locking import LockFile
from runed.paths import Paths
from tests.backends.contract.contenders import Contender
from tests.backends.support import FakeEngine
from tests.support import process_gone, wait_until


def remove_home(paths: Paths) -> None:
    shutil.rmtree(paths.home)


def remove_lock(paths: Paths) -> None:
    paths.daemon_lock.unlink()


def replace_lock(paths: Paths) -> None:
    paths.daemon_lock.with_suffix(".new").touch()
    paths.daemon_lock.with_suffix(".new").replace(paths.daemon_lock)


def move_home(paths: Paths) -> None:
    paths.home.rename(paths.home.with_name(f"{paths.home.name}.old"))


async def embed_until_refused(older: EngineBackend) -> None:
    async with asyncio.timeout(10):
        while True:
            await older.embed(["a text"])
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("lose", [remove_home, remove_lock, replace_lock, move_home])
async def test_older_daemon_leaves_the_engine_of_its_successor_alone(
    lose: Callable[[Paths], None], tmp_path: Path, engine: Contender, fake: FakeEngine
) -> None:
    paths = Paths(tmp_path / "h")
    paths.home.mkdir(0o700)

    def backend(lock: LockFile) -> EngineBackend:
        return engine.backend(fake.executable, paths=paths, holds_home=lock.is_current)

    with LockFile(paths.daemon_lock) as old_lock, LockFile(paths.daemon_lock) as new_lock:
        assert old_lock.try_acquire()
        older = backend(old_lock)
        await older.start()
        first = older.state.pid
        lose(paths)
        paths.home.mkdir(0o700, exist_ok=True)
        assert new_lock.try_acquire()
        newer = backend(new_lock)
        try:
            await newer.start()
            second = newer.state.pid
            # Its engine is ended, or has lost its socket, so it would start another one. Until that is noticed, the engine
            # answers over the connection that it has.
            with pytest.raises(BackendUnavailableError, match="removed or replaced"):
                await embed_until_refused(older)
            assert first is not None
            assert second is not None
            wait_until(lambda: process_gone(first), what="the end of the older engine")
            await older.stop()
            assert not process_gone(second)
            assert paths.engine_socket.is_socket()
            assert paths.engine_record.exists()
        finally:
            await older.stop()
            await newer.stop()
