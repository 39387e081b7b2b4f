"""Texts that kill or poison the engine: they are found, refused and remembered, and no other text suffers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import pytest

from runed.backends.base import BackendStatus, pack
from runed.backends.engine.backend import EngineBackend
from runed.backends.engine.guard import EngineDiedError, Suspects
from runed.errors import BackendFaultError, BackendUnavailableError
from tests.backends.contract.contenders import MakeEngine
from tests.backends.support import QUICK, FakeEngine
from tests.support import wait_until

CRASH = EngineDiedError("it died", crashed=True)
END = EngineDiedError("it ended", crashed=False)


async def refuse(backend: EngineBackend, *texts: str) -> str:
    """Embed texts of which one is refused. Return the message."""
    with pytest.raises(BackendFaultError) as caught:
        await backend.embed(texts)
    assert not any(text in caught.value.message for text in texts)
    assert caught.value.retry_after is None
    return caught.value.message


async def test_text_that_kills_the_engine_is_refused_after_two_deaths_and_then_at_once(
    make_backend: MakeEngine, fake: FakeEngine
) -> None:
    fake.behave(on={"boom": "crash"})
    backend = make_backend(fake.executable)
    assert "died 2 times while it had only this text" in (told := await refuse(backend, "boom"))
    assert "was ended by SIGABRT" in told
    assert len((await backend.embed(["hello"])).vectors) == 1
    assert len(fake.launches) == 3
    await refuse(backend, "boom")
    await refuse(backend, "hello", "boom")
    assert len(fake.launches) == 3
    await backend.stop()
    await refuse(backend, "boom")
    assert backend.state.status is BackendStatus.STOPPED, "an engine was started for a text that it must not get"


async def test_deaths_by_a_text_refuse_no_other_text(make_backend: MakeEngine, fake: FakeEngine) -> None:
    killers = [f"boom {number}" for number in range(4)]
    fake.behave(on=dict.fromkeys(killers, "crash"))
    backend = make_backend(fake.executable, timings=replace(QUICK, max_failures=2, pause=60.0))
    for killer in killers:
        await refuse(backend, killer)
    async with asyncio.timeout(10):
        await backend.embed(["hello"])


async def test_killer_among_others_costs_three_deaths(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"boom": "crash"})
    backend = make_backend(fake.executable)
    await refuse(backend, *(f"text {number}" for number in range(5)), "boom", "the last")
    await backend.start()
    assert backend.state.restarts == 3
    await backend.embed([f"text {number}" for number in range(5)])


async def test_texts_whose_engine_dies_of_something_else_get_their_vectors(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"boom": "crash-once"})
    backend = make_backend(fake.executable)
    texts = ["one", "boom", "two words"]
    batch = await backend.embed(texts)
    assert (batch.vectors, batch.tokens) == ([(await backend.embed([text])).vectors[0] for text in texts], 7)
    assert backend.state.restarts == 1


async def test_text_in_company_is_not_blamed(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"boom": "crash", "long": "sleep"})
    backend = make_backend(fake.executable)
    await backend.start()
    long = asyncio.create_task(backend.embed(["long"]))
    await asyncio.sleep(0.2)
    await refuse(backend, "boom")
    assert len((await long).vectors) == 1
    await backend.start()
    assert backend.state.restarts == 3


async def test_text_is_not_blamed_for_two_kills_from_outside(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"long": "sleep"})
    backend = make_backend(fake.executable)
    await backend.start()
    long = asyncio.create_task(backend.embed(["long"]))
    for deaths in range(2):
        await asyncio.to_thread(wait_until, lambda deaths=deaths: backend.state.restarts == deaths and backend.state.pid)
        await asyncio.sleep(0.2)
        os.kill(backend.state.pid, signal.SIGKILL)
    assert len((await long).vectors) == 1
    assert backend.state.restarts == 2


@pytest.mark.parametrize("action", ["kill", "deaf", "hang"])
async def test_text_that_ends_every_engine_as_if_from_outside_is_refused_in_the_end(
    make_backend: MakeEngine, fake: FakeEngine, action: str
) -> None:
    fake.behave(on={"boom": action})
    backend = make_backend(fake.executable, timings=replace(QUICK, hang=0.3, probe=0.2))
    if action == "hang":
        fake.behave(on={"boom": "deadlock"})
    assert "died 3 times" in await refuse(backend, "boom")
    await backend.embed(["hello"])


async def test_engine_that_cannot_be_started_is_no_fault_of_a_text(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"boom": "crash"})
    backend = make_backend(fake.executable)
    await backend.start()
    fake.behave(exit="no")
    for _ in range(3):
        with pytest.raises(BackendUnavailableError) as caught:
            await backend.embed(["boom"])
        await asyncio.sleep(caught.value.retry_after or 0)
    fake.behave()
    await backend.embed(["boom"])


async def test_tokens_that_kill_the_engine_are_refused(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"7 8": "crash"})
    backend = make_backend(fake.executable)
    for _ in range(2):
        with pytest.raises(BackendFaultError, match="died 2 times"):
            await backend.embed([pack([7, 8, 319])])
    assert len((await backend.embed([pack([7, 9, 319])])).vectors) == 1
    assert len(fake.launches) == 3


# Poison


async def test_poisoned_engine_is_replaced_before_a_text_is_blamed(make_backend: MakeEngine, fake: FakeEngine) -> None:
    fake.behave(on={"bad luck": "poison-once"})
    backend = make_backend(fake.executable)
    await backend.embed(["hello"])
    assert len((await backend.embed(["bad luck"])).vectors) == 1
    assert backend.state.restarts == 1


async def test_text_that_poisons_every_engine_is_refused_and_leaves_a_sound_one(
    make_backend: MakeEngine, fake: FakeEngine
) -> None:
    fake.behave(on={"poison": "poison"})
    backend = make_backend(fake.executable)
    assert "gave a wrong vector for the text of its self-test, too" in await refuse(backend, "one", "poison", "two")
    await refuse(backend, "poison")
    await backend.embed(["one", "two"])
    assert backend.state.restarts == 3


async def test_replacement_that_gives_other_vectors_is_not_used(make_backend: MakeEngine, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable)
    await backend.embed(["hello"])
    fake.behave(on={"runed": "other"})
    os.kill(backend.state.pid, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: backend.state.status is BackendStatus.FAILED)
    assert "another vector for the same text" in backend.state.reason


# Memory


def refused(suspects: Suspects, text: str) -> bool:
    try:
        suspects.check([text])
    except BackendFaultError:
        return True
    return False


def test_two_crashes_or_three_ends_convict_a_text_unless_an_answer_comes_between() -> None:
    suspects = Suspects()
    for deaths, convicted in [
        ([CRASH], False),
        ([CRASH] * 2, True),
        ([END] * 2, False),
        ([END] * 3, True),
        ([END, CRASH], False),
    ]:
        suspects.clear(["text"])
        for death in deaths:
            suspects.blame("text", death)
        assert refused(suspects, "text") is convicted
    suspects.clear(["text"])
    suspects.blame("text", CRASH)
    suspects.clear(["text"])
    suspects.blame("text", CRASH)
    assert not refused(suspects, "text")
    assert not refused(suspects, "another")


def test_conviction_ends_after_its_time_and_the_trial_begins_anew() -> None:
    suspects = Suspects(seconds=0.2)
    for _ in range(2):
        suspects.blame("text", CRASH)
    assert refused(suspects, "text")
    time.sleep(0.25)
    assert not refused(suspects, "text")
    suspects.blame("text", CRASH)
    assert not refused(suspects, "text")


def test_memory_is_bounded_and_holds_no_text() -> None:
    suspects = Suspects(most=3)
    for number in range(5):
        for _ in range(2):
            suspects.blame(f"secret {number}", CRASH)
    assert [refused(suspects, f"secret {number}") for number in range(5)] == [False, False, True, True, True]
    assert "secret" not in repr(vars(suspects))
    other = Suspects()
    other.blame("secret 4", CRASH)
    assert not vars(other)["_suspects"].keys() & vars(suspects)["_suspects"].keys(), "the hash has no key of its own"
