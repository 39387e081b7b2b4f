"""The command line of the worker, and the limits of a micro-batch that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from runed.backends.base import BatchLimits
from runed.backends.onnx.graphs import python_environment
from runed.backends.onnx.http import OnnxHTTP
from runed.domain.model import ModelInfo

WORKER = Path(__file__).with_name("worker.py")
"""The program of the worker."""

# Measured on two cores, texts of 14 tokens: MiniLM 4.5 ms alone, 2.8 ms each in lists of 8, 2.6 of 16, 2.4 of 32, 2.2 of 64;
# BERT-base 26, 19, 16.3, 16.1 ms. 500 and 1,000 tokens are computed at the same speed, 4,000 at 0.8 times of it.
_LIMITS = {"memory": (1, 256), "balanced": (32, 512), "throughput": (64, 1024)}
"""Texts and tokens of a micro-batch, by profile."""


@dataclass(frozen=True, kw_only=True)
class OnnxCommand:
    """One way to run the worker on a graph.

    Attributes:
        executable: The Python that runs it, an absolute path.
        worker: The program of the worker.
        model: The file that the graph was made of, or a user's own ONNX file.
        graph: The folder of the graph.
        socket: The UNIX socket to listen on.
        log: The file for its output.
        info: The description of the model.
        pooling: The pooling instead of that of the model, or "".
        profile: One of `runed.settings.PROFILES`.
        threads: The threads that compute.
        provider: What computes: "cpu", "cuda", "coreml" or "dml".
        is_replaceable: Whether another engine can serve in place of this one.
        name: The name of the engine, for messages.
        remark: "", since there are no fallbacks.
        tuned_at: "", since nothing is measured on this machine.
    """

    executable: Path
    worker: Path
    model: Path
    graph: Path
    socket: Path
    log: Path
    info: ModelInfo
    pooling: str
    profile: str
    threads: int
    provider: str
    is_replaceable: bool
    name: ClassVar[str] = OnnxHTTP.name
    remark: ClassVar[str] = ""
    tuned_at: ClassVar[str] = ""

    @property
    def limits(self) -> BatchLimits:
        """See `Embedder.limits`."""
        texts, tokens = _LIMITS[self.profile]
        return BatchLimits(texts=texts, tokens=tokens, by_estimate=True, counted=True)

    @property
    def context(self) -> int:
        """See `EngineCommand.context`: each text has a context of its own."""
        return self.info.max_tokens

    def argv(self) -> list[str]:
        """Return the program and its arguments."""
        options: dict[str, object] = {
            "--graph": self.graph,
            "--socket": self.socket,
            "--threads": self.threads,
            "--max-tokens": self.info.max_tokens,
            "--provider": self.provider,
        }
        # -P: the folder of the program has modules with the names of others, such as `http`.
        return [str(self.executable), "-P", str(self.worker), *(str(part) for option in options.items() for part in option)]

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the worker."""
        return python_environment()
