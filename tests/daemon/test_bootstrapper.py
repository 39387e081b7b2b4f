"""The bootstrapper alone, with a bootstrap whose time the test controls."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from runed.bootstrap import Phase, Progress
from runed.daemon import bootstrapper as module
from runed.daemon.assembly import assemble
from runed.daemon.bootstrapper import Bootstrapper
from runed.daemon.draining import Draining
from runed.daemon.served_model import ServedModel
from runed.domain.status import Status
from runed.errors import (
    BackendUnavailableError,
    BootstrappingError,
    DownloadError,
    ManifestError,
    ModelFileError,
    RunedError,
    SettingsError,
    VerificationError,
)
from runed.lifecycle.listener import Listener
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.paths import Paths
from runed.settings import load_settings
from tests.backends.support import FakeEngine
from tests.support import process_gone, wait_until


class Site:
    """A bootstrap that reports as the test asks, waits until the test lets it go, and fails."""

    def __init__(self, error: RunedError | None = None) -> None:
        self.error = error or DownloadError("the site is gone")
        self.tries = 0
        self.report: Callable[[Progress], None] = lambda _: None
        self.broken = asyncio.Event()

    async def build(self, report: Callable[[Progress], None]) -> ServedModel:
        self.tries += 1
        self.report = report
        await self.broken.wait()
        raise self.error


async def test_call_gives_up_after_a_while_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAIT", 0.2)
    site = Site()
    bootstrapper = Bootstrapper(site.build, Draining(lambda: None))
    bootstrapper.begin()
    with pytest.raises(BootstrappingError, match="looking for engine and model; Health tells the progress") as caught:
        await bootstrapper.scheduler()
    assert caught.value.retry_after == 1.0
    await bootstrapper.close()


async def test_step_after_a_download_does_not_make_calls_wait_again() -> None:
    site = Site()
    bootstrapper = Bootstrapper(site.build, Draining(lambda: None))
    bootstrapper.begin()
    await asyncio.sleep(0)
    site.report(Progress(Phase.FETCHING_LLAMA_SERVER, 5, 10, "downloading", downloading=True))
    site.report(Progress(Phase.FETCHING_LLAMA_SERVER, 0, 0, "unpacking", downloading=True))
    async with asyncio.timeout(5):
        with pytest.raises(BootstrappingError, match="not there yet: unpacking; Health"):
            await bootstrapper.scheduler()
    await bootstrapper.close()


async def test_calls_wait_for_the_choice_of_the_engine_even_after_a_download() -> None:
    site = Site(DownloadError("no engine can serve"))
    bootstrapper = Bootstrapper(site.build, Draining(lambda: None))
    bootstrapper.begin()
    await asyncio.sleep(0)
    site.report(Progress(Phase.FETCHING_MODEL, 5, 10, "downloading", downloading=True))
    site.report(Progress(Phase.CHOOSING_ENGINE, 0, 0, "choosing the faster engine"))
    call = asyncio.create_task(bootstrapper.scheduler())
    assert await asyncio.wait([call], timeout=0.1) == (set(), {call})
    site.broken.set()
    with pytest.raises(BackendUnavailableError, match="no engine can serve"):
        await call
    await bootstrapper.close()


async def test_call_after_the_pause_starts_the_next_try_and_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BOOTSTRAP_PAUSE", 0.2)
    site = Site()
    bootstrapper = Bootstrapper(site.build, Draining(lambda: None))
    bootstrapper.begin()
    call = asyncio.ensure_future(bootstrapper.scheduler())
    site.broken.set()
    with pytest.raises(BackendUnavailableError, match="the site is gone"):
        await call
    with pytest.raises(BackendUnavailableError) as early:
        await bootstrapper.scheduler()
    assert early.value.retry_after is not None
    assert (site.tries, bootstrapper.situation[0]) == (1, Status.DEGRADED)
    site.broken.clear()
    await asyncio.sleep(early.value.retry_after + 0.05)
    await bootstrapper.settle()
    assert site.tries == 1, "only a call that needs the model starts the next try"
    again = [asyncio.ensure_future(bootstrapper.scheduler()) for _ in range(2)]
    await asyncio.sleep(0.1)
    assert (site.tries, bootstrapper.situation[0]) == (2, Status.LOADING)
    site.broken.set()
    for call in again:
        with pytest.raises(BackendUnavailableError):
            await call
    assert site.tries == 2
    await bootstrapper.close()


@pytest.mark.parametrize("kind", [SettingsError, ManifestError, ModelFileError, VerificationError])
async def test_failure_that_only_a_change_can_mend_is_not_tried_again_by_clients(
    kind: type[RunedError], caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(kind("it is wrong; correct it"))
    site.broken.set()
    bootstrapper = Bootstrapper(site.build, Draining(lambda: None))
    bootstrapper.begin()
    with pytest.raises(BackendUnavailableError, match="it is wrong; correct it") as caught:
        await bootstrapper.scheduler()
    assert caught.value.retry_after is None
    # The daemon keeps the environment of its start. So a user who corrects only that would meet the error for ever.
    assert ("runed stop" in caught.value.message) == (kind is not VerificationError)
    [facts] = [record.__dict__["facts"] for record in caplog.records if record.message == "bootstrap failed"]
    assert facts["code"] == kind.reason, "by it `runed doctor` finds the remedy"
    await bootstrapper.close()


async def test_a_call_in_the_moment_in_which_the_device_fails_leaves_one_bootstrap(home: Path, tiny_qwen3: Path) -> None:
    engine = FakeEngine(home / "engine")
    engine.behave(devices=["Vulkan0: fake device (2048 MiB, 2000 MiB free)"], on_device={"exit": "device lost"})
    chosen = {"RUNED_LLAMA_SERVER": str(engine.executable), "RUNED_MODEL": str(tiny_qwen3), "RUNED_ENGINE": "vulkan"}
    settings, paths = load_settings(home=home, environ=chosen), Paths(home)
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    with LockFile(paths.daemon_lock) as lock, Listener.bind(paths.socket) as listener:
        assert lock.try_acquire()
        record = DaemonRecord.of_this_process(paths.socket, http="")
        pool = assemble(settings, paths, lock=lock, record=record, listener=listener, http=None).pool
        bootstrapper = pool.default
        bootstrapper.begin()
        async with asyncio.timeout(30):
            while bootstrapper.model is None or not bootstrapper.model.device_failed:  # noqa: ASYNC110 # no event tells it
                await asyncio.sleep(0)  # in each round of the event loop, so that it comes before the bootstrap
            scheduler = await bootstrapper.scheduler()
            await scheduler.start()
        assert bootstrapper.model is not None
        assert bootstrapper.model.serving.device.is_cpu
        await pool.close()
    gc.collect()
    assert failures == []


async def test_an_engine_that_started_too_early_ends(home: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(home / "engine")
    settings = load_settings(
        home=home, environ={"RUNED_LLAMA_SERVER": str(engine.executable), "RUNED_MODEL": str(tiny_qwen3), "RUNED_ENGINE": "cpu"}
    )
    paths = Paths(home)

    def wait(*_: object) -> None:
        wait_until(lambda: engine.launches, timeout=60, what="the engine")  # in a thread: the event loop starts the engine

    def fail(*_: object, **__: object) -> None:
        raise RunedError("no room for the scheduler")

    monkeypatch.setattr("runed.daemon.assembly._restore_centroids", wait)
    monkeypatch.setattr("runed.scheduling.scheduler.Scheduler.__init__", fail)
    with LockFile(paths.daemon_lock) as lock, Listener.bind(paths.socket) as listener:
        assert lock.try_acquire()
        record = DaemonRecord.of_this_process(paths.socket, http="")
        pool = assemble(settings, paths, lock=lock, record=record, listener=listener, http=None).pool
        bootstrapper = pool.default
        bootstrapper.begin()
        with pytest.raises(BackendUnavailableError, match="no room for the scheduler"):
            await bootstrapper.scheduler()
        assert all(process_gone(launch["pid"]) for launch in engine.launches)
        await pool.close()
