"""Engines that misbehave: each causes a clear error, harms no other call, and the next try works."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import psutil
import pytest

from runed.backends.base import BackendState, BackendStatus, pack
from runed.backends.engine.backend import EngineBackend
from runed.backends.engine.server import EngineServer
from runed.backends.engine.supervisor import Supervisor
from runed.backends.engine.timings import Timings
from runed.errors import BackendFaultError, BackendUnavailableError
from runed.lifecycle.listener import probe
from runed.paths import Paths
from runed.processes import identify
from tests.backends.contract.contenders import Contender, MakeEngine
from tests.backends.support import QUICK, FakeEngine, fail_to_start
from tests.support import process_gone, wait_until

SECRET = "a text that must not be told"


at_a_signal = pytest.mark.parametrize(
    "action",
    [
        "deaf-once",
        "gone-once",
        pytest.param(
            "caught-once",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell that a handler runs"),
        ),
    ],
)
"""The ways in which a busy engine takes a signal that asks it to end."""


async def until(backend: EngineBackend, status: BackendStatus) -> BackendState:
    await asyncio.to_thread(wait_until, lambda: backend.state.status is status)
    return backend.state


def test_backend_that_was_never_started_is_stopped_and_well(make_backend: MakeEngine, fake: FakeEngine) -> None:
    state = make_backend(fake.executable).state
    assert (state.status, state.reason, state.pid) == (BackendStatus.STOPPED, "", 0)
    assert (state.restarts, state.wakeups, state.waking_seconds) == (0, 0, 0.0)


async def test_first_start_begins_at_once() -> None:
    begun = asyncio.Event()

    async def launch() -> EngineServer:
        begun.set()
        raise BackendFaultError("no engine")

    with pytest.raises(BackendFaultError):
        await Supervisor(launch, QUICK, engine="llama-server").ready()
    starting = asyncio.create_task(Supervisor(launch, QUICK, engine="llama-server").ready())
    begun.clear()
    for _ in range(10):  # rounds of the event loop, in which no time passes
        await asyncio.sleep(0)
    assert begun.is_set()
    with pytest.raises(BackendFaultError):
        await starting


async def test_fake_engine_passes_for_a_good_one(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable)
    batch = await backend.embed(["one", "two words"])
    assert batch.tokens == 5
    assert (await backend.embed(["two words"])).vectors == batch.vectors[1:]


def freeze(pid: int) -> None:
    """Stop all threads of an engine. It lives then, but neither answers nor works, as in a deadlock."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


async def die_unnoticed(backend: EngineBackend, *, times: int) -> BackendState:
    """Start an engine, and end it and its replacements while nobody waits, until none is replaced any more."""
    await backend.start()
    for deaths in range(times):
        await asyncio.to_thread(wait_until, lambda deaths=deaths: backend.state.restarts == deaths and backend.state.pid)
        os.kill(backend.state.pid, signal.SIGSEGV)
    return await until(backend, BackendStatus.STOPPED)


# Starting


async def test_engine_that_exits_is_tried_again_then_given_up_then_recovers(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(exit="out of luck")
    backend = make_backend(fake.executable)
    await fail_to_start(backend, "exited with code 1 while it started; its last words: out of luck")
    assert len(fake.launches) == QUICK.max_failures
    with pytest.raises(BackendUnavailableError, match="is tried again in") as caught:
        await backend.embed(["hello"])
    assert len(fake.launches) == QUICK.max_failures
    fake.behave()
    assert caught.value.retry_after is not None
    await asyncio.sleep(caught.value.retry_after)
    await backend.embed(["hello"])
    assert backend.state.status is BackendStatus.READY
    assert backend.state.reason == ""


async def test_model_that_was_replaced_is_not_served_under_the_identity_of_the_old_one(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, tmp_path: Path
) -> None:
    model = engine.copy_of_model(tmp_path / "model.gguf")
    backend = make_backend(fake.executable, model)
    await backend.start()
    await backend.stop()
    engine.copy_of_model(tmp_path / "new.gguf").replace(model)
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match=r"^the model .*model.gguf was replaced") as caught:
            await backend.start()
        assert caught.value.retry_after is None  # no other try can help
        assert backend.state.status is BackendStatus.FAILED
    assert len(fake.launches) == 1


@pytest.mark.parametrize("where", ["before-listening", "after-listening", "loading"])
async def test_engine_that_hangs_at_its_start_is_given_up(make_backend: MakeEngine, fake: FakeEngine, where: str) -> None:
    fake.behave(hang=where)
    backend = make_backend(fake.executable, timings=replace(QUICK, start_stall=0.5, max_failures=1))
    await fail_to_start(backend, r"made no progress for 0.5 seconds while it started")
    assert not psutil.pid_exists(fake.launches[0]["pid"])


async def test_engine_that_hangs_in_its_self_test_is_given_up(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(always="hang")
    backend = make_backend(fake.executable, timings=replace(QUICK, start_stall=0.5, max_failures=1))
    await fail_to_start(backend, r"made no progress for 0.5 seconds while it started")


@pytest.mark.parametrize("action", ["crash", "dying"])
async def test_engine_that_dies_in_its_self_test_is_told(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, action: str
) -> None:
    fake.behave(always=action)
    await fail_to_start(make_backend(fake.executable), rf"{engine.name} was ended by SIGABRT while it started.*{engine.doubt}")


async def test_slow_load_is_waited_for_as_long_as_it_makes_progress(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(load_seconds=2.5)
    backend = make_backend(fake.executable, timings=replace(QUICK, start_stall=1.0, max_failures=1))
    started = time.monotonic()
    await backend.start()
    assert time.monotonic() - started > 2.5


async def test_load_without_end_is_given_up_in_spite_of_progress(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(load_seconds=60)
    backend = make_backend(fake.executable, timings=replace(QUICK, start_limit=1.0, max_failures=1))
    await fail_to_start(backend, r"was not ready after 1 seconds")


async def test_megabyte_of_output_blocks_nothing_and_is_kept_bounded(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, paths: Paths
) -> None:
    fake.behave(stderr_bytes=1_000_000)
    backend = make_backend(fake.executable)
    await backend.embed(["hello"])
    await backend.stop()
    log = engine.log(paths)
    assert log.stat().st_size == 1_000_000
    fake.behave(stderr_bytes=5_000_000)
    await backend.start()
    await backend.stop()
    older = log.with_name(f"{log.name}.1")
    assert log.stat().st_size + older.stat().st_size == 6_000_000
    assert max(log.stat().st_size, older.stat().st_size) <= 5 * 1024 * 1024


async def test_engine_is_given_nothing_of_the_environment_that_could_change_its_answers(
    make_backend: MakeEngine, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLAMA_ARG_CTX_SIZE", "LLAMA_API_KEY", "AIP_MODE", "XDG_CONFIG_HOME", "RUNED_HOME", "SECRET_TOKEN"):
        monkeypatch.setenv(name, "leaked")
    await make_backend(fake.executable).start()
    environment = fake.launches[0]["environment"]
    assert "leaked" not in environment.values()
    assert environment["XDG_CONFIG_HOME"] == "/dev/null"


# Wrong answers


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("nan", "not finite"),
        ("zeros", "not of unit norm"),
        ("norm-1.001", "not of unit norm"),
        ("norm-0.999", "not of unit norm"),
        ("dimension", ""),
        ("too-few", ""),
        ("500", "HTTP status 500"),
        ("garbage", ""),
        ("not-http", "not HTTP"),
        ("half", "broke off its answer"),
        ("endless", "more bytes than the texts can have"),
        ("count", ""),
    ],
)
async def test_wrong_answer_is_a_fault_and_hurts_no_other_text(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, action: str, told: str
) -> None:
    fake.behave(on={SECRET: action})
    backend = make_backend(fake.executable)
    with pytest.raises(BackendFaultError, match=told or engine.told[action]) as caught:
        await backend.embed([SECRET])
    assert SECRET not in caught.value.message
    assert len((await backend.embed(["hello"])).vectors) == 1
    assert backend.state.restarts == 0


@pytest.mark.parametrize("action", ["norm-1.0004", "norm-0.9996"])
async def test_rounding_of_a_half_precision_engine_is_no_fault(make_backend: MakeEngine, fake: FakeEngine, action: str) -> None:
    fake.behave(on={"rounded": action})
    assert len((await make_backend(fake.executable).embed(["rounded"])).vectors) == 1


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("nan", "not finite"),
        ("zeros", "not of unit norm"),
        ("dimension", ""),
        ("batch-differs", "differently alone and in a batch"),
        ("500", "HTTP status 500"),
    ],
)
async def test_engine_that_computes_wrongly_fails_its_self_test(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, action: str, told: str
) -> None:
    told = told or engine.told[action]
    fake.behave(always=action)
    backend = make_backend(fake.executable)
    with pytest.raises(BackendFaultError, match=told):
        await backend.start()
    assert backend.state.status is BackendStatus.FAILED
    assert len(fake.launches) == 1
    assert not psutil.pid_exists(fake.launches[0]["pid"])
    with pytest.raises(BackendUnavailableError, match=told):
        await backend.embed(["hello"])


async def test_hang_shows_also_while_texts_are_counted(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"stuck": "deadlock-once"})
    backend = make_backend(fake.executable)
    await backend.start()
    stuck = asyncio.create_task(backend.embed(["stuck"]))
    async with asyncio.timeout(20):
        while not stuck.done():
            await asyncio.gather(*(backend.tokenize(["a text " * 1000]) for _ in range(4)))
    assert (await stuck).vectors
    assert backend.state.restarts == 1


async def test_connection_that_the_engine_closed_in_silence_is_made_again(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(close_silently=True)
    backend = make_backend(fake.executable)
    for _ in range(10):
        await backend.embed(["hello"])
    assert backend.state.restarts == 0


# Deaths


async def test_text_whose_engine_dies_is_tried_once_more(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"boom": "crash-once"})
    backend = make_backend(fake.executable)
    assert len((await backend.embed(["boom"])).vectors) == 1
    assert backend.state.restarts == 1
    assert len(fake.launches) == 2


async def test_death_that_shows_long_after_the_connection_broke_is_a_death(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"boom": "slow-death"})
    backend = make_backend(fake.executable)
    with pytest.raises(BackendFaultError, match=r"died 2 times .* was ended by SIGABRT"):
        await backend.embed(["boom"])
    await backend.embed(["hello"])
    assert backend.state.restarts == 2


async def test_deaths_between_answers_never_end_in_failure(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, max_failures=2))
    for deaths in range(3):
        await backend.embed(["hello"])
        assert backend.state.restarts == deaths
        os.kill(backend.state.pid, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda deaths=deaths: backend.state.restarts > deaths, what="the replacement")


def test_pauses_between_replacements_double_up_to_a_limit_and_are_jittered() -> None:
    async def launch() -> EngineServer:
        raise AssertionError

    supervisor = Supervisor(launch, Timings(backoff=1.0, backoff_limit=6.0), engine="llama-server")
    for failures, longest in [(0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (4, 6.0), (20, 6.0)]:
        supervisor._failures = failures
        pauses = [supervisor._backoff() for _ in range(300)]
        assert longest / 2 <= min(pauses) < 0.6 * longest
        assert 0.9 * longest < max(pauses) <= longest


async def test_backend_that_recovered_is_stopped_not_failed(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(exit="no")
    backend = make_backend(fake.executable)
    await fail_to_start(backend, "its last words: no")
    fake.behave()
    await asyncio.sleep(QUICK.pause)
    await backend.start()
    await backend.stop()
    state = backend.state
    assert (state.status, state.reason, state.pid, state.company_cosine) == (BackendStatus.STOPPED, "", 0, 1.0)
    assert (state.restarts, state.wakeups) == (0, 1)
    assert state.waking_seconds > 0


async def test_stop_ends_the_pause_before_a_replacement(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, backoff=60.0, backoff_limit=60.0))
    await backend.start()
    os.kill(backend.state.pid, signal.SIGKILL)
    await until(backend, BackendStatus.STARTING)
    async with asyncio.timeout(10):
        await backend.stop()
        assert backend.state.status is BackendStatus.STOPPED
        await backend.start()
    assert backend.state.restarts == 0


async def test_deaths_while_nobody_waits_end_the_replacing_but_refuse_no_text(
    make_backend: MakeEngine, fake: FakeEngine
) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, max_failures=2, pause=60.0))
    assert "SIGSEGV" in (await die_unnoticed(backend, times=2)).reason
    assert len(fake.launches) == 2
    async with asyncio.timeout(10):
        await backend.embed(["hello"])
    assert len(fake.launches) == 3


async def test_start_after_deaths_while_nobody_waited_has_all_its_tries(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, max_failures=2))
    await die_unnoticed(backend, times=2)
    fake.behave(exit="no")
    await fail_to_start(backend, "its last words: no")
    assert len(fake.launches) == 4


async def test_all_requests_of_a_dead_engine_share_one_restart(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"wait": "busy", "boom": "crash-once"})
    backend = make_backend(fake.executable)
    await backend.start()
    batches = await asyncio.gather(*(backend.embed([text]) for text in ["wait", "wait", "boom", "hello", "wait"]))
    assert len(batches) == 5
    assert backend.state.restarts == 1
    assert len(fake.launches) == 2


async def test_caller_that_comes_between_a_death_and_its_notice_gets_the_replacement(
    make_backend: MakeEngine, fake: FakeEngine
) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, look=60.0))
    supervisor = backend._supervisor
    dead = await supervisor.ready()
    callers: list[asyncio.Task[EngineServer]] = []
    dead.child.exited.add_done_callback(lambda _: callers.append(asyncio.create_task(supervisor.ready())))
    os.kill(backend.state.pid, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: callers)
    assert await callers[0] is not dead


async def test_engine_that_dies_while_it_is_checked_is_not_called_poisoned(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine
) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, look=60.0))  # so that the check finds it, and no look
    server = await backend._supervisor.ready()
    os.kill(backend.state.pid, signal.SIGKILL)
    assert not await backend._supervisor.is_sound(server)
    assert not server.crashed
    assert server.end == f"{engine.name} was ended by SIGKILL"


async def test_engine_that_cannot_be_reached_while_it_is_checked_is_not_called_poisoned(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, paths: Paths
) -> None:
    fake.behave(close_silently=True)
    backend = make_backend(fake.executable, timings=replace(QUICK, look=60.0))  # as above
    server = await backend._supervisor.ready()
    paths.engine_socket.unlink()
    assert not await backend._supervisor.is_sound(server)
    assert not server.crashed
    assert server.end == f"{engine.name} could not be reached any more by its socket, so it was replaced"


async def test_engine_that_closes_its_socket_before_it_dies_tells_its_own_end(
    make_backend: MakeEngine, fake: FakeEngine
) -> None:
    fake.behave(on={"boom": "dying"})
    backend = make_backend(fake.executable)
    with pytest.raises(BackendFaultError, match=r"died 2 times .* was ended by SIGABRT"):
        await backend.embed(["boom"])


async def test_first_fault_of_an_engine_is_told(engine: Contender, make_backend: MakeEngine, fake: FakeEngine) -> None:
    server = await make_backend(fake.executable)._supervisor.ready()
    await asyncio.gather(server.condemn("gave wrong vectors"), server.condemn("could not be reached"))
    assert server.end == f"{engine.name} gave wrong vectors, so it was replaced"


async def test_removed_socket_gets_a_new_engine(make_backend: MakeEngine, fake: FakeEngine, paths: Paths) -> None:
    fake.behave(close_silently=True)  # so that no open connection hides that the socket is gone
    backend = make_backend(fake.executable)
    await backend.start()
    paths.engine_socket.unlink()
    assert len((await backend.embed(["hello"])).vectors) == 1
    assert backend.state.restarts == 1


@at_a_signal
async def test_engine_that_owes_an_answer_and_never_gives_it_after_a_signal_is_replaced_at_once(
    make_backend: MakeEngine, fake: FakeEngine, action: str
) -> None:
    fake.behave(on={"stuck": action})
    backend = make_backend(fake.executable, timings=replace(QUICK, hang=60.0, probe=60.0))
    await backend.start()
    async with asyncio.timeout(10):
        assert (await backend.embed(["stuck"])).vectors
    assert backend.state.restarts == 1


async def test_engine_that_cannot_be_reached_is_replaced_and_told_though_nobody_asks(
    make_backend: MakeEngine, fake: FakeEngine, paths: Paths
) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, max_failures=1))
    await backend.start()
    paths.engine_socket.unlink()
    assert "could not be reached any more by its socket" in (await until(backend, BackendStatus.STOPPED)).reason


async def test_busy_engine_is_not_a_dead_engine(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"long": "busy"})
    backend = make_backend(fake.executable, timings=replace(QUICK, hang=0.1))
    await backend.start()
    pid = backend.state.pid
    await backend.embed(["long"])
    assert (backend.state.pid, backend.state.restarts) == (pid, 0)


async def test_engine_that_works_is_not_asked_whether_it_hangs(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"long": "busy"})
    backend = make_backend(fake.executable)
    await backend.start()
    await backend.embed(["long"])
    assert backend.state.restarts == 0


async def test_idle_engine_is_left_alone(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, hang=0.1))
    await backend.start()
    pid = backend.state.pid
    await asyncio.sleep(0.5)
    await backend.embed(["hello"])
    assert (backend.state.pid, backend.state.restarts) == (pid, 0)


async def test_hung_engine_is_replaced_and_the_request_succeeds(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable)
    await backend.start()
    pid = backend.state.pid
    freeze(pid)
    assert len((await backend.embed(["hello"])).vectors) == 1
    assert backend.state.restarts == 1
    assert not psutil.pid_exists(pid)


async def test_silent_engine_is_told_before_and_after_it_is_replaced(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine
) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, backoff=60.0, backoff_limit=60.0))
    await backend.start()
    freeze(backend.state.pid)
    waiting = asyncio.create_task(backend.embed(["hello"]))
    reason = (await until(backend, BackendStatus.SILENT)).reason
    assert reason.startswith(f"{engine.name} is stopped by a signal; it is replaced")
    reason = (await until(backend, BackendStatus.STARTING)).reason
    assert reason.startswith(f"{engine.name} did not answer for 0.9 seconds and did nothing, so it was replaced")
    waiting.cancel()


async def test_engine_that_is_stopped_for_a_moment_is_left_alone(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable)
    await backend.start()
    freeze(pid := backend.state.pid)
    waiting = asyncio.create_task(backend.embed(["hello"]))
    await until(backend, BackendStatus.SILENT)
    os.kill(pid, signal.SIGCONT)
    await waiting
    assert (await until(backend, BackendStatus.READY)).reason == ""
    assert (backend.state.pid, backend.state.restarts) == (pid, 0)


async def test_stopped_engine_whose_queue_of_connections_is_full_is_waited_for(
    make_backend: MakeEngine, fake: FakeEngine
) -> None:
    fake.behave(backlog=1, close_silently=True)
    backend = make_backend(fake.executable, timings=replace(QUICK, hang=60.0, probe=60.0))
    await backend.start()
    freeze(pid := backend.state.pid)
    waiting = [asyncio.create_task(backend.tokenize([f"text {number}"])) for number in range(6)]
    await asyncio.sleep(1.5)  # longer than a lost connection is waited for
    os.kill(pid, signal.SIGCONT)
    assert await asyncio.gather(*waiting) == [[pack([0, 1, 319])]] * 6
    assert (backend.state.pid, backend.state.restarts) == (pid, 0)


async def test_stopped_engine_is_replaced_though_nobody_asks(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable)
    await backend.start()
    freeze(backend.state.pid)
    await asyncio.to_thread(wait_until, lambda: backend.state.restarts == 1, what="the replacement")


async def test_engine_that_is_stopped_while_it_starts_is_replaced(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(load_seconds=0.5)
    backend = make_backend(fake.executable, timings=replace(QUICK, start_stall=60.0))
    starting = asyncio.create_task(backend.start())
    launch = await asyncio.to_thread(wait_until, lambda: fake.launches)
    freeze(launch[0]["pid"])
    async with asyncio.timeout(15):
        await starting
    assert len(fake.launches) == 2


@at_a_signal
async def test_engine_that_gets_a_signal_in_its_self_test_is_replaced_at_once(
    make_backend: MakeEngine, fake: FakeEngine, action: str
) -> None:
    fake.behave(always=action)
    backend = make_backend(fake.executable, timings=replace(QUICK, start_stall=60.0))
    async with asyncio.timeout(15):
        await backend.start()
    assert len(fake.launches) == 2


async def test_engine_that_loses_its_socket_while_it_loads_is_replaced_at_once(
    make_backend: MakeEngine, fake: FakeEngine, paths: Paths
) -> None:
    fake.behave(hang="loading")
    backend = make_backend(fake.executable, timings=replace(QUICK, start_stall=60.0))
    starting = asyncio.create_task(backend.start())
    await asyncio.to_thread(wait_until, lambda: probe(paths.engine_socket), what="its listener")
    await asyncio.sleep(0.5)
    fake.behave()
    paths.engine_socket.unlink()
    async with asyncio.timeout(15):
        await starting
    assert len(fake.launches) == 2


async def test_hung_engine_is_noticed_though_every_caller_loses_patience(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable)
    await backend.start()
    freeze(backend.state.pid)
    deadline = time.monotonic() + 15
    while backend.state.restarts == 0:
        assert time.monotonic() < deadline
        try:
            async with asyncio.timeout(0.1):
                await backend.embed(["hello"])
        except TimeoutError:
            pass
    await backend.embed(["hello"])


async def test_engine_that_cannot_be_watched_is_replaced(engine: Contender, make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, hang=cast("float", "no number"), max_failures=1))
    await backend.start()
    state = await until(backend, BackendStatus.STOPPED)
    assert state.reason.startswith(f"{engine.name} could not be watched any longer, so it was replaced")
    assert process_gone(fake.launches[0]["pid"])


async def test_one_lost_request_of_a_healthy_engine_replaces_nothing(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"stuck": "hang"})
    backend = make_backend(fake.executable, timings=replace(QUICK, hang=0.1))
    await backend.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await backend.embed(["stuck"])
    await backend.embed(["hello"])
    assert backend.state.restarts == 0


# Stopping


async def test_engine_that_ignores_sigterm_is_killed(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(ignore_sigterm=True)
    backend = make_backend(fake.executable, timings=replace(QUICK, term_grace=0.2))
    await backend.start()
    pid = backend.state.pid
    await asyncio.gather(backend.stop(), backend.stop())
    assert not psutil.pid_exists(pid)


async def test_stop_ends_a_start_and_tells_who_waits_for_it(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(hang="loading")
    backend = make_backend(fake.executable)
    waiting = asyncio.create_task(backend.embed(["hello"]))
    await asyncio.to_thread(wait_until, lambda: fake.launches)
    await backend.stop()
    with pytest.raises(BackendUnavailableError, match=r"^the engine was stopped while it started; try again$") as caught:
        await waiting
    assert caught.value.retry_after == QUICK.backoff
    assert not psutil.pid_exists(fake.launches[0]["pid"])
    assert backend.state.status is BackendStatus.STOPPED


async def test_start_during_a_stop_waits_for_it(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(ignore_sigterm=True)
    backend = make_backend(fake.executable, timings=replace(QUICK, term_grace=0.2))
    await backend.start()
    first = backend.state.pid
    stopping = asyncio.create_task(backend.stop())
    await asyncio.sleep(0)
    await backend.start()
    assert stopping.done()
    assert not psutil.pid_exists(first)
    assert backend.state.status is BackendStatus.READY


async def test_caller_that_gives_up_does_not_end_the_start_of_the_others(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(load_seconds=0.5)
    backend = make_backend(fake.executable)
    impatient = asyncio.create_task(backend.start())
    patient = asyncio.create_task(backend.start())
    await asyncio.sleep(0.1)
    impatient.cancel()
    await patient
    assert impatient.cancelled()
    assert len(fake.launches) == 1


async def test_stop_and_start_at_random_leave_one_engine_or_none(
    make_backend: MakeEngine, fake: FakeEngine, paths: Paths
) -> None:
    fake.behave(on={"boom": "crash"})
    backend = make_backend(fake.executable, timings=replace(QUICK, max_failures=100, backoff=0.001))

    async def disturb(number: int) -> None:
        for turn in range(6):
            await asyncio.sleep(0.013 * ((number * 7 + turn * 3) % 11))
            try:
                if number == 0:
                    await backend.stop()
                else:
                    await backend.embed(["boom" if number == 1 else "hello"])
            except (BackendUnavailableError, BackendFaultError):
                pass

    await asyncio.gather(*(disturb(number) for number in range(5)))
    await backend.embed(["hello"])
    children = [child.pid for child in psutil.Process().children() if str(paths.engine_socket) in child.cmdline()]
    assert children == [backend.state.pid]


# Orphans


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process in its own session, like an engine."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as process:
        yield process
        process.kill()


async def test_engine_of_a_dead_daemon_is_ended_before_a_new_one_starts(
    make_backend: MakeEngine, paths: Paths, stranger: subprocess.Popen[bytes]
) -> None:
    paths.engine_record.parent.mkdir(parents=True)
    paths.engine_record.write_bytes(msgspec.json.encode(identify(stranger.pid)))
    await make_backend().start()
    stranger.wait(5)
    assert not psutil.pid_exists(stranger.pid)


async def test_process_that_got_the_pid_of_a_dead_engine_is_left_alone(
    make_backend: MakeEngine, paths: Paths, stranger: subprocess.Popen[bytes]
) -> None:
    paths.engine_record.parent.mkdir(parents=True)
    identity = identify(stranger.pid)
    assert identity is not None
    earlier = msgspec.structs.replace(identity, start_time=identity.start_time - 60)
    paths.engine_record.write_bytes(msgspec.json.encode(earlier))
    await make_backend().start()
    assert stranger.poll() is None


@pytest.mark.parametrize("record", ["", "{", '{"pid": -1, "start_time": 0}', '{"pid": 0, "start_time": 0}', '{"pid": "me"}'])
async def test_damaged_record_is_as_good_as_none(make_backend: MakeEngine, paths: Paths, record: str) -> None:
    paths.engine_record.parent.mkdir(parents=True)
    paths.engine_record.write_text(record)
    backend = make_backend()
    await backend.start()
    assert json.loads(paths.engine_record.read_text())["pid"] == backend.state.pid


async def test_file_in_the_place_of_the_socket_is_left_alone(make_backend: MakeEngine, paths: Paths) -> None:
    paths.engine_socket.parent.mkdir(parents=True)
    paths.engine_socket.write_text("precious")
    await fail_to_start(make_backend(), "engine.sock is not a socket; move it away")
    assert paths.engine_socket.read_text() == "precious"
