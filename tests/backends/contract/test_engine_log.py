"""What the log tells of the life of an engine. It is all that is left of an engine that died at night."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from dataclasses import replace
from typing import Any, cast

import pytest

from runed.backends.base import BackendStatus
from runed.backends.engine.server import EngineServer
from runed.backends.engine.supervisor import Supervisor
from runed.errors import BackendUnavailableError
from tests.backends.contract.contenders import Contender, MakeEngine
from tests.backends.support import QUICK, FakeEngine
from tests.support import wait_until

Line = tuple[str, str, dict[str, Any]]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log from INFO on, as a daemon writes it."""
    caplog.set_level(logging.INFO, "runed")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[Line]:
    """Return level, event and facts of what the supervisor has logged. Failures in callbacks reach only asyncio's log."""
    return [
        (record.levelname, record.message, vars(record).get("facts", {}))
        for record in log.records
        if record.name in {Supervisor.__module__, "asyncio"}
    ]


async def test_start_and_stop_are_told(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, log: pytest.LogCaptureFixture
) -> None:
    fake.behave(load_seconds=0.3)
    backend = make_backend(fake.executable)
    began = time.monotonic()
    await backend.start()
    took = time.monotonic() - began
    pid = fake.launches[0]["pid"]
    await backend.stop()
    (level, event, facts), stopped = lines(log)
    seconds = facts.pop("seconds")
    assert (level, event, facts) == ("INFO", f"{engine.name} ready", {"pid": pid, "restarts": 0})
    assert 0.3 < seconds <= took + 0.001
    assert seconds == round(seconds, 3)
    assert stopped == ("INFO", f"{engine.name} stopped", {"pid": pid})


async def test_each_failed_start_is_told_with_its_reason(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, log: pytest.LogCaptureFixture
) -> None:
    fake.behave(exit="out of luck")
    with pytest.raises(BackendUnavailableError, match="out of luck") as caught:
        await make_backend(fake.executable).start()
    assert lines(log) == [
        ("ERROR", f"{engine.name} failed", {"reason": caught.value.message, "failures": failures, "given_up": failures == 3})
        for failures in (1, 2, 3)
    ]


async def test_death_with_a_text_is_told_and_is_no_failure(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, log: pytest.LogCaptureFixture
) -> None:
    fake.behave(on={"boom": "crash-once"})
    backend = make_backend(fake.executable)
    await backend.embed(["boom"])
    ready, died, again = lines(log)
    assert died == ("ERROR", f"{engine.name} died", {"reason": f"{engine.name} was ended by SIGABRT; it said nothing"})
    assert [(*line[1:2], line[2]["pid"], line[2]["restarts"]) for line in (ready, again)] == [
        (f"{engine.name} ready", launch["pid"], restarts) for restarts, launch in enumerate(fake.launches)
    ]


async def test_death_while_nobody_waits_is_told_as_a_failure(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, log: pytest.LogCaptureFixture
) -> None:
    backend = make_backend(fake.executable)
    await backend.start()
    os.kill(backend.state.pid, signal.SIGSEGV)
    await asyncio.to_thread(wait_until, lambda: backend.state.restarts == 1, what="the replacement")
    facts = {"reason": f"{engine.name} was ended by SIGSEGV; it said nothing", "failures": 1, "given_up": False}
    assert lines(log)[1] == ("ERROR", f"{engine.name} failed", facts)


async def test_engine_that_cannot_be_watched_is_told(
    engine: Contender, make_backend: MakeEngine, fake: FakeEngine, log: pytest.LogCaptureFixture
) -> None:
    backend = make_backend(fake.executable, timings=replace(QUICK, hang=cast("float", "no number"), max_failures=1))
    await backend.start()
    await asyncio.to_thread(wait_until, lambda: backend.state.status is BackendStatus.STOPPED)
    level, event, facts = lines(log)[1]
    assert (level, event, facts["error_type"]) == ("ERROR", f"{engine.name} cannot be watched", "builtins.TypeError")


async def test_unexpected_failure_of_a_start_is_told_and_reaches_the_caller(log: pytest.LogCaptureFixture) -> None:
    async def launch() -> EngineServer:
        raise MemoryError

    supervisor = Supervisor(launch, QUICK, engine="llama-server")
    with pytest.raises(MemoryError):
        await supervisor.ready()
    assert supervisor.status is BackendStatus.STOPPED
    [(level, event, facts)] = lines(log)
    assert (level, event, facts["error_type"]) == ("ERROR", "llama-server start failed unexpectedly", "builtins.MemoryError")
