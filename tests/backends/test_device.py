"""A backend on a device: its arguments, and what it does when the device fails."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runed.backends.base import BackendStatus, BatchLimits
from runed.backends.engine.launcher import DeviceError
from runed.backends.llama.command import LlamaCommand
from runed.backends.llama.profile import built_in_profile
from runed.backends.llama.quirks import Quirks
from runed.domain.device import CPU, Device
from runed.domain.model import ModelInfo
from runed.errors import BackendUnavailableError
from runed.paths import Paths
from tests.backends.support import QUICK, FakeEngine, MakeBackend

GIB = 1024**3
GPU = Device("cuda", "CUDA0", "NVIDIA H100", 80 * GIB, 78 * GIB)


def command(device: Device, *, pooling: str = "last", profile: str = "balanced", context: int = 8192) -> LlamaCommand:
    info = ModelInfo("sha256:1", "m", "qwen3", 64, 8191 if pooling == "last" else 512, pooling, "F32", "ab" * 32)
    return LlamaCommand(
        executable=Path("/e"),
        model=Path("/m"),
        socket=Path("/s"),
        log=Path("/l"),
        info=info,
        context=context,
        profile=built_in_profile(profile, pooling=pooling, device=device),
        vocabulary=151_936,
        device=device,
    )


def option(command: LlamaCommand, name: str) -> str | None:
    argv = command.argv()
    return argv[argv.index(name) + 1] if name in argv else None


def test_all_layers_and_large_passes_go_to_the_device() -> None:
    on_gpu, on_cpu = command(GPU), command(CPU)
    assert (option(on_gpu, "--device"), option(on_gpu, "--n-gpu-layers")) == ("CUDA0", "999")
    assert (option(on_cpu, "--device"), option(on_cpu, "--n-gpu-layers")) == ("none", None)
    assert on_gpu.limits == BatchLimits(texts=32, tokens=2048)
    assert option(on_gpu, "--ubatch-size") == option(on_gpu, "--batch-size") == "2048"
    assert option(on_gpu, "--parallel") == "32"


@pytest.mark.parametrize(
    ("pooling", "profile", "context", "free", "tokens", "batch"),
    [
        ("last", "throughput", 8192, 78 * GIB, 4096, 4096),
        ("last", "memory", 8192, 78 * GIB, 512, 512),
        ("last", "throughput", 2048, 78 * GIB, 1024, 1024),  # the context also holds the last texts of the slots
        ("last", "balanced", 8192, 2 * GIB, 384, 384),
        ("last", "balanced", 8192, 0, 64, 64),  # its memory is full
        ("mean", "balanced", 8192, 78 * GIB, 2048, 2048),
        ("mean", "balanced", 8192, 1 * GIB, 192, 512),  # the longest text needs one pass
    ],
)
def test_a_pass_is_as_large_as_profile_context_and_memory_allow(  # noqa: PLR0917 # the columns of the table
    pooling: str, profile: str, context: int, free: int, tokens: int, batch: int
) -> None:
    on_gpu = command(replace(GPU, free_memory=free), pooling=pooling, profile=profile, context=context)
    assert option(on_gpu, "--ubatch-size") == str(batch)
    assert on_gpu.limits.tokens == max(tokens, min(batch, on_gpu.profile.batch_tokens))


def test_a_device_that_does_not_tell_its_memory_gets_passes_of_middle_size() -> None:
    assert command(replace(GPU, memory=0, free_memory=0)).limits.tokens == 512


def test_the_long_text_of_the_self_test_needs_two_passes_where_texts_share_a_context() -> None:
    assert command(GPU).long_tokens == 2056
    assert command(CPU).long_tokens == 200
    assert command(GPU, pooling="mean").long_tokens == command(CPU, pooling="mean").long_tokens == 72


def test_quirks_of_a_device_are_not_those_of_the_processors(tmp_path: Path) -> None:
    executable = tmp_path / "e"
    executable.touch()
    info = command(GPU).info
    Quirks(tmp_path / "q", executable, info, GPU).remember_one_slot()
    assert Quirks(tmp_path / "q", executable, info, GPU).one_slot()
    assert not Quirks(tmp_path / "q", executable, info, replace(GPU, description="another")).one_slot()
    assert not Quirks(tmp_path / "q", executable, info).one_slot()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"exit": "CUDA error: no kernel image is available"}, "no kernel image is available"),
        ({"always": "nan"}, "a vector that is not finite"),
        ({"always": "crash"}, "llama-server .* while it started"),
        ({"always": "batch-differs"}, "differently alone and in a batch"),
    ],
)
async def test_an_engine_that_fails_on_its_device_is_given_up_after_another_try(
    fake: FakeEngine, make_backend: MakeBackend, behaviour: dict[str, Any], reason: str
) -> None:
    fake.behave(on_device=behaviour)
    backend = make_backend(fake.executable, device=GPU)
    with pytest.raises(DeviceError, match=reason) as caught:
        await backend.start()
    assert backend.state.status is BackendStatus.DEVICE_FAILED
    assert re.search(reason, backend.state.reason)
    assert caught.value.retry_after == QUICK.backoff
    assert [launch["argv"][launch["argv"].index("--device") + 1] for launch in fake.launches] == ["CUDA0"] * 2


async def test_a_device_whose_memory_becomes_free_serves(fake: FakeEngine, make_backend: MakeBackend) -> None:
    fake.behave(on_device={"always": "crash-once"})
    backend = make_backend(fake.executable, device=GPU)
    await backend.start()
    assert backend.state.status is BackendStatus.READY
    assert len(fake.launches) == 2


async def test_a_device_is_not_to_blame_for_a_model_that_was_replaced(
    fake: FakeEngine, make_backend: MakeBackend, copy_of_tiny_qwen3: Path
) -> None:
    backend = make_backend(fake.executable, copy_of_tiny_qwen3, device=GPU)
    os.unlink(copy_of_tiny_qwen3)  # noqa: PTH108 # ruff takes the method of a path for a wait
    with pytest.raises(BackendUnavailableError, match="is missing; put it back") as caught:
        await backend.start()
    assert not isinstance(caught.value, DeviceError)
    assert backend.state.status is BackendStatus.FAILED


async def test_a_device_that_vanishes_while_it_serves_is_given_up(fake: FakeEngine, make_backend: MakeBackend) -> None:
    backend = make_backend(fake.executable, device=GPU)
    await backend.embed(["one"])
    fake.behave(on_device={"exit": "invalid device: CUDA0"})
    await backend.stop()
    with pytest.raises(BackendUnavailableError, match="invalid device: CUDA0"):
        await backend.embed(["one"])
    assert backend.state.status is BackendStatus.DEVICE_FAILED


async def test_the_self_test_tells_how_much_company_matters(fake: FakeEngine, make_backend: MakeBackend, paths: Paths) -> None:
    fake.behave(on_device={"always": "batch-rounds"})
    backend = make_backend(fake.executable, device=GPU)
    assert backend.state.company_cosine == 0.0
    await backend.start()
    assert backend.limits.texts == 1, "0.9998 is too far from 1 for several texts at once"
    assert backend.state.company_cosine == pytest.approx(0.9998, abs=1e-5)
