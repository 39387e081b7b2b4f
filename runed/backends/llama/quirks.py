"""Keeps the quirks of an engine on this machine in a file, so that each is found only once."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path

import msgspec

from runed.backends.engine.self_test import SelfTest
from runed.domain.device import CPU, Device
from runed.domain.model import ModelInfo
from runed.files import read_record, write_atomically
from runed.log import get_logger

_LIBRARY = re.compile(r"lib.*\.(so|dylib)(\..*)?")
"""Names of shared libraries."""

_MAX_SELF_TESTS = 8
"""Most self-tests that are kept; the oldest are dropped first."""

_log = get_logger(__name__)


class _Document(msgspec.Struct, kw_only=True):
    no_repack: list[str] = []
    one_slot: list[str] = []
    sound_passes: list[str] = []
    self_tests: dict[str, SelfTest] = {}


class Quirks:
    """The quirks of an engine and a model on this machine.

    Args:
        path: The file. An unreadable file counts as empty.
        executable: The engine.
        model: The model.
        device: The device that computes.
    """

    def __init__(self, path: Path, executable: Path, model: ModelInfo, device: Device = CPU) -> None:
        self._path = path
        self._executable = executable
        self._model = model
        self._device = device

    def no_repack(self) -> bool:
        """Return whether the engine dies of SIGILL without `--no-repack`."""
        return self.engine() in self._read().no_repack

    def remember_no_repack(self) -> None:
        """Remember that the engine dies of SIGILL without `--no-repack`."""
        document = self._read()
        document.no_repack = sorted({*document.no_repack, self.engine()})
        self._write(document)

    def one_slot(self) -> bool:
        """Return whether the engine rounds a vector of this model differently beside other texts."""
        return self.engine_and_model() in self._read().one_slot

    def remember_one_slot(self) -> None:
        """Remember that the engine rounds a vector of this model differently beside other texts."""
        document = self._read()
        document.one_slot = sorted({*document.one_slot, self.engine_and_model()})
        self._write(document)

    def has_sound_passes(self, tokens: int) -> bool:
        """Return whether long texts of this model were found independent of company, with passes of `tokens` tokens."""
        return f"{self.engine_and_model()} {tokens}" in self._read().sound_passes

    def remember_sound_passes(self, tokens: int) -> None:
        """Remember that long texts of this model are independent of company, with passes of `tokens` tokens."""
        document = self._read()
        document.sound_passes = sorted({*document.sound_passes, f"{self.engine_and_model()} {tokens}"})
        self._write(document)

    def self_test(self, key: str) -> SelfTest | None:
        """Return the self-test that the engine passed with this model, run as `key` tells; None if there is none."""
        return self._read().self_tests.get(f"{self.engine_and_model()} {key}")

    def remember_self_test(self, key: str, passed: SelfTest) -> None:
        """Remember a self-test that the engine passed with this model, run as `key` tells."""
        document = self._read()
        tests = [*document.self_tests.items(), (f"{self.engine_and_model()} {key}", passed)]
        document.self_tests = dict(tests[-_MAX_SELF_TESTS:])
        self._write(document)

    def engine(self) -> str:
        """Return a key for this build of the engine on this kind of processor and device. An updated engine has another key."""
        try:
            files = [self._executable.stat(), *_libraries_beside(self._executable)]
        except OSError:
            return ""
        device = "" if self._device.is_cpu else f" {self._device}"
        size, changed = sum(info.st_size for info in files), max(info.st_mtime_ns for info in files)
        return f"{self._executable} {size} {changed} {_processor()}{device}"

    def engine_and_model(self) -> str:
        """Return a key for the engine, as `engine` does, and the model that it serves."""
        return f"{self.engine()} {self._model.identity}"

    def _read(self) -> _Document:
        return read_record(self._path, _Document) or _Document()

    def _write(self, document: _Document) -> None:
        try:
            write_atomically(self._path, msgspec.json.encode(document))
        except OSError as error:  # the next start will find the quirk again
            _log.warning("cannot remember the quirks of llama-server", error=error.strerror)


def _libraries_beside(program: Path) -> list[os.stat_result]:
    """Return the states of the libraries in the folder of a program, where those of llama.cpp lie. The program may be small."""
    with os.scandir(program.parent) as entries:
        return [entry.stat() for entry in entries if _LIBRARY.fullmatch(entry.name) and entry.is_file()]


@cache
def _processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{platform.machine()} {model}".strip()
