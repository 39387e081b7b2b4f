"""A daemon whose home another daemon has taken over leaves the other one's engine alone."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from runed.backends.llama.backend import LlamaBackend
from runed.errors import BackendUnavailableError
from runed.paths import Paths
from tests.backends.support import QUICK, FakeEngine
from tests.support import process_gone, wait_until

PROGRAM = Path(__file__).resolve().parent.parent / "fakes" / "daemon_with_engine.py"

# A daemon is a process, and each of these backends must be the child of another one. So the older one runs in this process, and
# the newer one in `daemon_with_engine.py`.


async def test_older_daemon_leaves_the_engine_of_its_successor_alone(home: Path, fake: FakeEngine, tiny_qwen3: Path) -> None:
    paths = Paths(home)
    older = LlamaBackend(
        executable=fake.executable, model=tiny_qwen3, model_sha256="0" * 64, paths=paths, ctx_size=256, timings=QUICK
    )
    await older.start()
    first = older.state.pid
    newer = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(fake.executable), str(tiny_qwen3), str(home), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert newer.stdout is not None
        second = int(await asyncio.wait_for(newer.stdout.readline(), 30))
        assert first is not None
        wait_until(lambda: process_gone(first), what="the end of the older engine")
        with pytest.raises(BackendUnavailableError):
            await older.embed(["a text"])
        await asyncio.sleep(0.5)
        assert not process_gone(second)
        assert paths.engine_socket.is_socket()
        assert paths.engine_record.exists()
    finally:
        await older.stop()
        newer.kill()
        await newer.wait()
