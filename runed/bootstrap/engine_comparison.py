"""The results of comparing `llama-server` and ONNX Runtime on this machine, so that each model is compared only once."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from runed.bootstrap.audit import now
from runed.bootstrap.by_model import keep, read_of
from runed.domain.engines import LLAMA_SERVER, ONNX_RUNTIME
from runed.log import get_logger

_SAME = 0.9999
"""Cosine from which on vectors count as the same."""
_FAILURE_HOLDS = timedelta(days=1)
"""The time for which a failure of ONNX Runtime is remembered. It may have been one by chance, as when memory was short, and a
further try costs a start a few seconds."""

_log = get_logger(__name__)


class EngineBuilds(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison of engines depends on, besides the model.

    Attributes:
        llama_server: The build of `llama-server`.
        onnx: The versions of ONNX Runtime and of the graphs, and what it computes with.
        processors: The processors of the machine.
    """

    llama_server: str
    onnx: str
    processors: str


class EngineComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a comparison for a model.

    Attributes:
        model: The SHA-256 of the model.
        builds: The engines that were compared.
        objection: Why ONNX Runtime cannot serve the model, as one sentence; "" if it can.
        is_unfit: Whether the objection is one to the model, and not a failure.
        is_faster: Whether ONNX Runtime was the faster one.
        is_unsure: Whether the rounds of the comparison disagreed, as on a busy machine. `llama-server` serves then.
        llama_server_rate: The texts per second of `llama-server`; 0 if it was not measured.
        onnx_rate: The texts per second of ONNX Runtime; 0 if it was not measured.
        cosine: The smallest cosine between the vectors of the two engines; 0 if they were not compared.
        disputed: Kinds of texts that ONNX Runtime splits into tokens as the model's own tokenizer does, and `llama-server` in
            another way.
        compared_at: The time, in ISO 8601.
    """

    model: str
    builds: EngineBuilds
    objection: str = ""
    is_unfit: bool = False
    is_faster: bool = False
    is_unsure: bool = False
    llama_server_rate: float = 0.0
    onnx_rate: float = 0.0
    cosine: float = 0.0
    disputed: list[str] = []
    compared_at: str = msgspec.field(default_factory=now)

    @property
    def chooses_onnx(self) -> bool:
        """Whether ONNX Runtime serves the model."""
        return self.is_faster and not self.objection

    @property
    def figures(self) -> str:
        """The speed of both engines, that of the chosen one first; "" without measurements."""
        if not (self.onnx_rate and self.llama_server_rate):
            return ""
        onnx, llama = f"{self.onnx_rate:,.0f}", f"{self.llama_server_rate:,.0f}"
        if self.chooses_onnx:
            return f"{onnx} texts/s, and {LLAMA_SERVER} {llama}"
        return f"{llama} texts/s, and {ONNX_RUNTIME} {onnx}"

    def reason_for(self, engine: str) -> str:
        """Return why an engine serves the model, as a clause that follows its name; "" if this comparison does not decide."""
        if (engine == ONNX_RUNTIME) != self.chooses_onnx:
            return ""
        if self.objection:
            return f"since {ONNX_RUNTIME} cannot serve the model: {self.objection}"
        if not self.figures:
            return ""
        near = ""
        if 0 < self.cosine < _SAME:
            near = f", vectors of the two have a cosine of {math.floor(self.cosine * 1e5) / 1e5:.5f} or more"
        why = "the usual one, since two measurements on a busy machine disagreed" if self.is_unsure else "the faster one"
        undo = "`runed bench --tune` on a quiet machine decides" if self.is_unsure else "`runed bench --reset` undoes that"
        reason = f"{why}: {self.figures}{near}, as measured at {self.compared_at} ({undo})"
        if self.disputed:
            unlike, splits = (LLAMA_SERVER, "it splits") if engine == ONNX_RUNTIME else (ONNX_RUNTIME, "it does not split")
            reason += f"; unlike {unlike}, {splits} {', '.join(self.disputed)} into tokens as the model's own tokenizer does"
        return reason

    @property
    def tried_again(self) -> datetime | None:
        """The time from which on the engines are compared again although nothing has changed; None for never.

        That is after a failure. That engines gave other tokens or vectors was measured, and what is unfit stays so.
        """
        if not self.objection or self.is_unfit or self.onnx_rate:
            return None
        try:
            return datetime.fromisoformat(self.compared_at).astimezone(UTC) + _FAILURE_HOLDS
        except (ValueError, OverflowError):  # of a file that somebody has changed
            return datetime.now(UTC)

    def holds_for(self, builds: EngineBuilds) -> bool:
        """Return whether the result is that of these engines. An objection is to ONNX Runtime, whatever the other engine."""
        if (again := self.tried_again) is not None:
            # By a clock that was wrong, the failure may lie in the future.
            left = again - datetime.now(UTC)
            return self.builds.onnx == builds.onnx and timedelta() < left <= _FAILURE_HOLDS
        return self.builds == builds or (self.objection != "" and self.builds.onnx == builds.onnx)


def read_comparison(path: Path, model: str) -> EngineComparison | None:
    """Return the result for a model, or None if there is none.

    Args:
        path: The file that `keep_comparison` writes. A missing or damaged file counts as empty.
        model: The SHA-256 of the model, or its first digits.
    """
    return read_of(path, EngineComparison, model)


def keep_comparison(path: Path, comparison: EngineComparison) -> None:
    """Keep a result for the next start. If that fails, the log tells it, and the next start compares again."""
    try:
        keep(path, comparison)
    except OSError as error:
        _log.warning("cannot remember the comparison of engines", error=error.strerror)
