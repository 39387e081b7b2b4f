"""Starts of `llama-server` that another engine does not have: programs of the user's own, kernels that crash, slots."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from runed.backends.base import BackendStatus
from runed.backends.engine import launcher
from runed.errors import BackendFaultError, BackendUnavailableError
from runed.paths import Paths
from tests.backends.support import FakeEngine, MakeBackend, fail_to_start
from tests.support import process_gone, wait_until


async def test_missing_engine_is_named(make_backend: MakeBackend, home: Path) -> None:
    await fail_to_start(make_backend(home / "nothing"), r"nothing: No such file or directory; run `runed install`")


async def test_engine_that_is_not_executable_is_named(make_backend: MakeBackend, fake: FakeEngine) -> None:
    fake.executable.chmod(0o600)
    await fail_to_start(make_backend(fake.executable), r"llama-server: Permission denied")


async def test_engine_that_is_no_program_is_named(make_backend: MakeBackend, fake: FakeEngine) -> None:
    fake.executable.write_bytes(b"\x00\x01\x02")
    await fail_to_start(make_backend(fake.executable), r"llama-server: Exec format error")


@pytest.mark.parametrize("program", ["true", "false", "echo", "sleep"])
async def test_engine_that_is_another_program_names_the_setting(make_backend: MakeBackend, program: str) -> None:
    path = shutil.which(program)
    await fail_to_start(
        make_backend(Path(str(path))),
        rf"exited with code [01] while it started; it.*; if {path} is not the llama-server .*, correct RUNED_LLAMA_SERVER ",
    )


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
async def test_failure_of_an_engine_that_runed_installed_names_no_setting(
    make_backend: MakeBackend, fake: FakeEngine, paths: Paths, accelerator: str
) -> None:
    fake.behave(exit="out of luck")
    paths.bin.mkdir()
    fake.executable.parent.rename(paths.engine(accelerator))
    await fail_to_start(make_backend(paths.engine(accelerator) / fake.executable.name), r"its last words: out of luck$")


async def test_users_llama_cpp_config_does_not_reach_the_engine(
    make_backend: MakeBackend, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = home / ".config" / "llama.cpp" / "config.ini"
    config.parent.mkdir(parents=True)
    config.write_text("api-key = locked-out\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert len((await make_backend().embed(["hello"])).vectors) == 1


async def test_illegal_instruction_is_met_without_repacking_and_remembered(
    make_backend: MakeBackend, fake: FakeEngine, paths: Paths
) -> None:
    fake.behave(needs_no_repack=True)
    backend = make_backend(fake.executable)
    await backend.start()
    assert ["--no-repack" in launch["argv"] for launch in fake.launches] == [False, True]
    assert "--no-repack" in backend.state.reason
    assert backend.state.restarts == 0
    await backend.stop()
    another = make_backend(fake.executable)
    assert "--no-repack" in another.state.reason
    await another.start()
    assert ["--no-repack" in launch["argv"] for launch in fake.launches] == [False, True, True]


async def test_updated_engine_is_tried_with_repacking_again(make_backend: MakeBackend, fake: FakeEngine) -> None:
    fake.behave(needs_no_repack=True)
    backend = make_backend(fake.executable)
    await backend.start()
    await backend.stop()
    os.utime(fake.executable, (1e9, 1e9))
    fake.behave()
    backend = make_backend(fake.executable)
    await backend.start()
    assert "--no-repack" not in fake.launches[-1]["argv"]
    assert backend.state.reason == ""


async def test_damaged_memory_of_quirks_is_as_good_as_none(make_backend: MakeBackend, fake: FakeEngine, paths: Paths) -> None:
    paths.cache.mkdir()
    paths.engine_quirks.write_text("[")
    await make_backend(fake.executable).start()
    assert "--no-repack" not in fake.launches[0]["argv"]


async def test_engine_for_another_processor_is_told(make_backend: MakeBackend, home: Path) -> None:
    script = home / "llama-server"
    script.write_text("#!/bin/sh\nkill -ILL $$\n")
    script.chmod(0o700)
    await fail_to_start(make_backend(script), r"SIGILL while it started: it was built for another processor")
    assert not Paths(home).engine_quirks.exists()


async def test_engine_whose_vectors_depend_on_company_is_run_with_one_slot_from_then_on(
    make_backend: MakeBackend, fake: FakeEngine
) -> None:
    fake.behave(always="batch-rounds")
    backend = make_backend(fake.executable)
    await backend.start()
    slots = [launch["argv"][launch["argv"].index("--parallel") + 1] for launch in fake.launches]
    assert slots == ["8", "1"]
    assert backend.limits.texts == 1
    assert "one by one" in backend.state.reason
    assert backend.state.restarts == 0
    await backend.stop()
    later = make_backend(fake.executable)
    await later.start()
    assert len(fake.launches) == 3
    assert later.limits.texts == 1


async def test_engine_that_cannot_erase_slots_is_run_with_one(make_backend: MakeBackend, fake: FakeEngine) -> None:
    fake.behave(no_slots=True)
    backend = make_backend(fake.executable)
    await backend.embed(["a text that is long enough for several micro-batches, " * 3])
    assert backend.limits.texts == 1
    assert len(fake.launches) == 2


async def test_engine_that_outlives_its_launcher_script_is_ended_all_the_same(
    make_backend: MakeBackend, fake: FakeEngine, home: Path
) -> None:
    launcher = home / "launcher"
    launcher.write_text(f'#!/bin/sh\n{fake.executable} "$@"\nexit $?\n')
    launcher.chmod(0o700)
    backend = make_backend(launcher)
    await backend.start()
    os.kill(backend.state.pid, signal.SIGKILL)
    await backend.embed(["hello"])
    async with asyncio.timeout(20):
        await backend.stop()
    # The kernel closes the pipe of a process, which is what the daemon sees of this one, a moment before the process is gone.
    await asyncio.to_thread(wait_until, lambda: process_gone(fake.launches[0]["pid"]))


async def test_engine_that_lacks_an_option_is_called_too_old(make_backend: MakeBackend, fake: FakeEngine) -> None:
    fake.behave(exit="error: unknown argument: --embeddings")
    told = "its last words: error: unknown argument: .*; it lacks an option that runed needs"
    await fail_to_start(make_backend(fake.executable), told)


async def test_engine_that_ends_no_text_fails_its_self_test(make_backend: MakeBackend, fake: FakeEngine) -> None:
    fake.behave(no_eos=True)
    told = r"does not end a text with the model's end-of-text token 319 \(it ends with \[0\]\)"
    with pytest.raises(BackendFaultError, match=told):
        await make_backend(fake.executable).start()
    assert len(fake.launches) == 1


async def test_engine_writes_no_trace_of_its_memory_at_a_crash(make_backend: MakeBackend, fake: FakeEngine) -> None:
    await make_backend(fake.executable).start()
    assert fake.launches[0]["environment"]["GGML_NO_BACKTRACE"] == "1"


async def test_model_that_is_put_back_byte_for_byte_is_served_again(
    fake: FakeEngine, make_backend: MakeBackend, copy_of_tiny_qwen3: Path
) -> None:
    model = copy_of_tiny_qwen3
    content = model.read_bytes()  # a small file
    backend = make_backend(fake.executable, model, model_sha256=hashlib.sha256(content).hexdigest())
    await backend.start()
    await backend.stop()
    os.unlink(model)  # noqa: PTH108 # ruff takes the method of a path for a wait
    with pytest.raises(BackendUnavailableError, match=r"^the model .* is missing; put it back"):
        await backend.start()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match=r"^the model .* was replaced while the daemon ran; put it back"):
            await backend.start()
    model.write_bytes(content)
    await backend.start()
    assert backend.state.status is BackendStatus.READY


async def test_model_that_is_exchanged_while_it_is_hashed_is_not_served(
    fake: FakeEngine, make_backend: MakeBackend, copy_of_tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy_of_tiny_qwen3
    content = model.read_bytes()  # a small file
    backend = make_backend(fake.executable, model, model_sha256=hashlib.sha256(content).hexdigest())
    other = model.with_name("other.gguf")
    other.write_bytes(content + b"\0")
    good = model.rename(model.with_name("good.gguf"))
    os.link(other, model)

    def exchange_meanwhile(path: Path) -> str:
        os.replace(good, path)  # noqa: PTH105 # ruff takes the method of a path for a wait
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(launcher, "_sha256", exchange_meanwhile)
    with pytest.raises(BackendUnavailableError, match="was replaced"):
        await backend.start()
    os.replace(other, model)  # noqa: PTH105 # as above
    monkeypatch.undo()
    with pytest.raises(BackendUnavailableError, match="was replaced"):
        await backend.start()
