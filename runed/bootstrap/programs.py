"""Running the programs of the engine's archive: `llama-server --version` and `llama-quantize`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runed.errors import BootstrapError
from runed.processes import describe_exit, die_with_parent
from runed.settings import engine_environment

VERSION_TIMEOUT = 20.0
"""Seconds; the first start of a program may wait for a slow disk or for the check of a downloaded program on macOS."""

QUANTIZE_TIMEOUT = 1800.0
"""Seconds; 20 are usual, so this ends only what hangs."""

_TAIL_BYTES = 4096
_TENSOR = re.compile(rb"\[ *(\d+)/ *(\d+)\]")
_VERSION = re.compile(r"^version: *(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Result:
    """How a program ended.

    Attributes:
        status: Its exit status, or minus the signal that ended it.
        tail: The last of what it wrote, standard output and error together.
    """

    status: int
    tail: str


async def engine_version(executable: Path, *, timeout: float = VERSION_TIMEOUT) -> str:  # noqa: ASYNC109 # a part of the error
    """Run `llama-server --version`, which also proves that the program runs on this machine.

    Args:
        executable: The engine.
        timeout: Seconds to wait for it.

    Returns:
        What it calls itself, such as "11194 (abc1234)", or "" if it does not say.

    Raises:
        BootstrapError: It cannot be started, fails or hangs; the message quotes what it wrote.
    """
    result = await _run([str(executable), "--version"], timeout)
    if result.status != 0:
        raise BootstrapError(f"{executable} --version {_ending(result)}{_hint(result.tail)}")
    match = _VERSION.search(result.tail)
    return match.group(1).strip() if match else ""


async def quantize(
    program: Path, source: Path, target: Path, quantization: str, *, on_tensor: Callable[[int, int], None]
) -> None:
    """Run `llama-quantize`.

    Args:
        program: The `llama-quantize`.
        source: The GGUF to read.
        target: The GGUF to write.
        quantization: What to make, such as "Q6_K".
        on_tensor: Told the number of the tensor at work and of all tensors.

    Raises:
        BootstrapError: It cannot be started, fails or hangs; the message quotes what it wrote.
    """

    def on_output(tail: bytes) -> None:
        if matches := _TENSOR.findall(tail):
            on_tensor(int(matches[-1][0]), int(matches[-1][1]))

    # The flag permits a quantized source such as Q8_0 and changes nothing for any other.
    argv = [str(program), "--allow-requantize", str(source), str(target), quantization]
    result = await _run(argv, QUANTIZE_TIMEOUT, on_output)
    if result.status != 0:
        raise BootstrapError(f"{program.name} to {quantization} {_ending(result)}{_hint(result.tail)}")


async def _run(argv: list[str], seconds: float, on_output: Callable[[bytes], None] | None = None) -> _Result:
    """Run a program to its end, which comes with a cancel, with the timeout, and on Linux with this process's death."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=engine_environment(),
            cwd="/",
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
    except OSError as error:
        raise BootstrapError(
            f"{argv[0]} cannot be started: {error.strerror}; it may be built for another processor or C library: "
            "set RUNED_LLAMA_SERVER to a llama-server of your own"
        ) from error
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
        raise BootstrapError(f"{argv[0]} did not end within {seconds:.0f} s and was stopped; it wrote: {_text(tail)}") from None
    finally:
        # The whole group: a wrapper script may have left the program itself behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return _Result(status, _text(tail))


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()


def _ending(result: _Result) -> str:
    lines = "; ".join(line.strip() for line in result.tail.splitlines()[-6:])
    quoted = f": {lines}" if lines else " without a word"
    return f"{describe_exit(result.status)}{quoted}"


def _hint(output: str) -> str:
    """Say what to do about the usual reasons why a program from elsewhere does not run."""
    if "libgomp" in output:
        return ". Install libgomp (package libgomp1 or libgomp)"
    if "GLIBC" in output:
        return (
            ". This system's C library is too old (glibc 2.35 is needed): set RUNED_LLAMA_SERVER to a llama-server of your own"
        )
    return ""
