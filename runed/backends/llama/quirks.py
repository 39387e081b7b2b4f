"""What was learned about an engine on this machine, kept in a file so that it is learned only once."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import msgspec

from runed.domain.model import ModelInfo
from runed.files import write_atomically
from runed.log import get_logger

_log = get_logger(__name__)


class _Document(msgspec.Struct, kw_only=True):
    no_repack: list[str] = []
    one_slot: list[str] = []


class Quirks:
    """What is peculiar to an engine and a model on this machine.

    Args:
        path: The file; one that cannot be read is as good as none.
        executable: The engine.
        model: The model.
    """

    def __init__(self, path: Path, executable: Path, model: ModelInfo) -> None:
        self._path = path
        self._executable = executable
        self._model = model

    def no_repack(self) -> bool:
        """Tell whether the engine dies of SIGILL without `--no-repack`."""
        return self.engine() in self._read().no_repack

    def remember_no_repack(self) -> None:
        """Remember that it does."""
        document = self._read()
        document.no_repack = sorted({*document.no_repack, self.engine()})
        self._write(document)

    def one_slot(self) -> bool:
        """Tell whether the engine computes this model's vectors differently in company."""
        return self.engine_and_model() in self._read().one_slot

    def remember_one_slot(self) -> None:
        """Remember that it does."""
        document = self._read()
        document.one_slot = sorted({*document.one_slot, self.engine_and_model()})
        self._write(document)

    def engine(self) -> str:
        """Name this very build of the engine on this kind of processor: an update may have cured it."""
        try:
            info = self._executable.stat()
        except OSError:
            return ""
        return f"{self._executable} {info.st_size} {info.st_mtime_ns} {_processor()}"

    def engine_and_model(self) -> str:
        """Name the engine, as `engine` does, with the model that it serves."""
        return f"{self.engine()} {self._model.identity}"

    def _read(self) -> _Document:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Document)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return _Document()

    def _write(self, document: _Document) -> None:
        try:
            write_atomically(self._path, msgspec.json.encode(document))
        except OSError as error:  # then it is learned again at the next start
            _log.warning("cannot remember what is peculiar to llama-server", error=error.strerror)


@cache
def _processor() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{platform.machine()} {model}".strip()
