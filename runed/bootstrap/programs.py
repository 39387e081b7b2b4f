"""Runs the programs of the engine's archive to their end: `llama-server`, to tell about itself, and `llama-quantize`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from runed.domain.device import Device
from runed.errors import BootstrapError, printable
from runed.processes import describe_exit, die_with_parent
from runed.settings import engine_environment

_VERSION_TIMEOUT = 20.0
"""Seconds that `--version` may take. The first start of a program may wait for a slow disk, or for the check of macOS."""

_DEVICES_TIMEOUT = 30.0
"""Seconds that `--list-devices` may take. A driver may be loaded from a slow disk, and wake its device."""

_QUANTIZE_TIMEOUT = 1800.0
"""Seconds that a quantization may take. 20 are usual, so only a hang takes this long."""

_MAX_LENGTH = 128
"""Most characters that are kept of a version, or of the description of a device."""

_TAIL_BYTES = 4096
_TENSOR = re.compile(rb"\[ *(\d+)/ *(\d+)\]")
_VERSION = re.compile(r"^version: *(.+)$", re.MULTILINE)
_DEVICE = re.compile(
    r"^ *(([A-Za-z]{1,16})[0-9]{0,4}): (.{1,512}) \(([0-9]{1,12}) MiB, ([0-9]{1,12}) MiB free\)\r?$", re.MULTILINE
)

_ACCELERATORS = {"CUDA": "cuda", "ROCm": "rocm", "Vulkan": "vulkan", "MTL": "metal", "Metal": "metal"}
"""Accelerators by the first letters of the names of their devices. Others, such as "BLAS", are no devices of their own."""

_QUOTED_CHARACTERS = 600
"""Most characters of a program's output that an error quotes."""


async def engine_version(executable: Path, *, timeout: float = _VERSION_TIMEOUT) -> str:  # noqa: ASYNC109 # a part of the error
    """Run `llama-server --version`. This also proves that the program runs on this machine.

    Args:
        executable: The engine.
        timeout: Seconds to wait for its end.

    Returns:
        The version, such as "11194 (abc1234)", or "" if it tells none.

    Raises:
        BootstrapError: It cannot be started, fails or hangs; the message quotes its output.
    """
    argv = [str(executable), "--version"]
    match = _VERSION.search(await _run(argv, " ".join(argv), timeout))
    return printable(match.group(1).strip()[:_MAX_LENGTH]) if match else ""


async def list_devices(executable: Path, *, timeout: float = _DEVICES_TIMEOUT) -> list[Device]:  # noqa: ASYNC109 # as above
    """Run `llama-server --list-devices`.

    Args:
        executable: The engine.
        timeout: Seconds to wait for its end.

    Returns:
        The accelerators that it lists, in its order.

    Raises:
        BootstrapError: It cannot be started, fails or hangs; the message quotes its output.
    """
    argv = [str(executable), "--list-devices"]
    return [
        Device(
            accelerator=_ACCELERATORS[kind],
            name=name,
            description=printable(description.strip()[:_MAX_LENGTH]),
            memory=int(memory) * 1024**2,
            free_memory=int(free) * 1024**2,
        )
        for name, kind, description, memory, free in _DEVICE.findall(await _run(argv, " ".join(argv), timeout))
        if kind in _ACCELERATORS
    ]


async def quantize(
    program: Path, source: Path, target: Path, quantization: str, *, on_tensor: Callable[[int, int], None]
) -> None:
    """Run `llama-quantize`.

    Args:
        program: The `llama-quantize`.
        source: The GGUF to read.
        target: The GGUF to write.
        quantization: The type to make, such as "Q6_K".
        on_tensor: Called with the number of the tensor at work and the number of all tensors.

    Raises:
        BootstrapError: It cannot be started, fails or hangs; the message quotes its output.
    """

    def on_output(tail: bytes) -> None:
        if matches := _TENSOR.findall(tail):
            on_tensor(int(matches[-1][0]), int(matches[-1][1]))

    # The flag permits a quantized source such as Q8_0 and changes nothing for any other.
    argv = [str(program), "--allow-requantize", str(source), str(target), quantization]
    await _run(argv, f"{program.name} to {quantization}", _QUANTIZE_TIMEOUT, on_output)


async def _run(argv: list[str], name: str, seconds: float, on_output: Callable[[bytes], None] | None = None) -> str:
    """Run a program and return the end of its output. A cancel, the timeout, or on Linux the death of this process ends it.

    Args:
        argv: The program and its arguments.
        name: The name of this run in an error.
        seconds: The timeout.
        on_output: Called with the end of the output so far.

    Raises:
        BootstrapError: It cannot be started, fails or hangs.
    """
    process = await _start(argv)
    tail = b""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(seconds):
            while chunk := await process.stdout.read(_TAIL_BYTES):
                tail = (tail + chunk)[-2 * _TAIL_BYTES :]
                if on_output:
                    on_output(tail)
            status = await process.wait()
    except TimeoutError:
        raise BootstrapError(f"{name} did not end within {seconds:.0f} s and was stopped; it wrote: {_quote(tail)}") from None
    finally:
        await _end(process)
    if status != 0:
        lines = _quote(tail)
        quoted = f": {lines}" if lines else " without a word"
        raise BootstrapError(f"{name} {describe_exit(status)}{quoted}{_hint(tail)}")
    return _text(tail)


async def _start(argv: list[str]) -> asyncio.subprocess.Process:
    """Start a program in a process group of its own. A cancel ends it.

    Raises:
        BootstrapError: It cannot be started.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=engine_environment(),
            cwd="/",
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # asyncio would end the program alone, and leave behind what the program has started.
        await asyncio.wait([starting])
        if starting.exception() is None:
            await _end(starting.result())
        raise
    except OSError as error:
        raise BootstrapError(
            f"{argv[0]} cannot be started: {error.strerror}; it may be built for another processor or C library: "
            "set RUNED_LLAMA_SERVER to a llama-server of your own"
        ) from error


async def _end(process: asyncio.subprocess.Process) -> None:
    # The whole group: a wrapper script may have left the program itself behind.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # asyncio tells the end of a process after that of its pipe, which it does not see while unread output fills its buffer.
    assert process.stdout is not None
    while await process.stdout.read(_TAIL_BYTES):
        pass
    await process.wait()


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()


def _quote(output: bytes) -> str:
    """Return the last lines of an output as one, for an error."""
    return "; ".join(line.strip() for line in _text(output).splitlines()[-6:])[-_QUOTED_CHARACTERS:]


def _hint(output: bytes) -> str:
    """Return the remedy for a common reason why a foreign program does not run, or ""."""
    if b"libgomp" in output:
        return ". Install libgomp (package libgomp1 or libgomp)"
    if b"GLIBC" in output:
        return (
            ". This system's C library is too old (glibc 2.35 is needed): set RUNED_LLAMA_SERVER to a llama-server of your own"
        )
    return ""
