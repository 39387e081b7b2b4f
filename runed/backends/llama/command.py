"""The command line of `llama-server`, and the limits of a micro-batch that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from runed.backends.base import BatchLimits
from runed.backends.engine.http import MAX_CONNECTIONS
from runed.backends.llama.http import Isolation
from runed.backends.llama.passes import RANKING_PASS, SHORT_PASS, affordable_pass, fitting_pass, pass_cost
from runed.backends.llama.profile import Profile
from runed.domain.device import CPU, Device
from runed.domain.model import RANK, ModelInfo, reads_last
from runed.settings import engine_environment

CONTEXT_STEP = 256
"""Step of a context in tokens: llama.cpp rounds a context up to a multiple of it. Measured: `-c 300` accepts texts of 511
tokens."""

_ALL_LAYERS = 999
"""More layers than any model has."""

_DEVICE_SHARE = 4
"""A micro-batch takes one part of this number of the free memory of a device."""

_FEW_DEVICE_TOKENS = 512
"""Tokens of a micro-batch on a device that does not tell its memory."""

_NO_REPACK_REMARK = (
    "llama-server is run with --no-repack, which is slower, because its fast kernels use an instruction "
    "that this processor or its hypervisor refuses (SIGILL)"
)

_ONE_SLOT_REMARK = (
    "texts are computed one by one, which is slower for many short ones, because this build of llama-server computes "
    "another vector for a text in a batch than for the same text alone"
)

_SMALL_REMARK = (
    "the engine computes {tokens} tokens at once instead of {wanted}, which is slower for long texts, "
    "because little memory is free"
)

_LONG_TOKENS = 72
"""Tokens of the self-test's long text if the texts of several slots share no context."""

_REST = 8
"""Tokens of that text beyond its first pass otherwise, so that a tile is missing beside them."""


@dataclass(frozen=True, kw_only=True)
class LlamaCommand:
    """One way to run `llama-server` on a model.

    Attributes:
        executable: The program.
        model: The GGUF.
        socket: The UNIX socket to listen on.
        log: The file for its output.
        info: The description of the model.
        context: The context in tokens, a multiple of `CONTEXT_STEP`.
        profile: The number of texts at once, of tokens at once, and of threads.
        vocabulary: The number of tokens that the model knows.
        pass_bound: The most tokens of a pass that the free memory allows; None allows any.
        no_repack: Whether to disable the repacked kernels, which crash some engines.
        one_slot: Whether to compute texts one by one, for engines whose vectors depend on the other texts of a batch.
        device: The device that computes.
        name: The name of the engine, for messages.
    """

    executable: Path
    model: Path
    socket: Path
    log: Path
    info: ModelInfo
    context: int
    profile: Profile
    vocabulary: int = 0
    pass_bound: int | None = None
    no_repack: bool = False
    one_slot: bool = False
    device: Device = CPU
    name: str = "llama-server"

    @property
    def slots(self) -> int:
        """The most texts that are computed at once."""
        # With last-token pooling, several slots need passes in tiles: without flash attention, vectors depend on company.
        if self.one_slot or self._ranks_last or (self._pools_last and self.pass_tokens <= SHORT_PASS):
            return 1
        return self.profile.slots

    @property
    def pass_tokens(self) -> int:
        """The tokens that the engine computes at once."""
        if not self.device.is_cpu:
            return self._device_pass
        if not (self._pools_last or self._ranks_last):
            return self.info.max_tokens  # such a model needs a whole text at once
        wanted = RANKING_PASS if self._ranks_last else self.profile.pass_tokens
        return fitting_pass(wanted if self.pass_bound is None else min(wanted, self.pass_bound), self.context)

    @cached_property
    def limits(self) -> BatchLimits:
        """See `Embedder.limits`."""
        # If the engine had to cut a batch, a text's tokens would be computed beside other tokens than when it is alone. With
        # mean and cls pooling, it cuts between texts, and these share nothing.
        tokens = min(self.profile.batch_tokens, self.pass_tokens)
        return BatchLimits(texts=self.slots, tokens=tokens, by_estimate=not self._pools_last)

    @property
    def isolation(self) -> Isolation | None:
        """The facts for `Isolation`; None where texts of several slots do not share a context."""
        return Isolation(self.slots, self.pass_tokens) if self.slots > 1 and self._pools_last else None

    @cached_property
    def remark(self) -> str:
        """A sentence for people about the quirks that this command avoids, or ""."""
        remarks = [_NO_REPACK_REMARK] if self.no_repack else []
        if self.one_slot and self.profile.slots > 1:
            remarks.append(_ONE_SLOT_REMARK)
        if self._pools_last and self.pass_bound is not None and self.pass_bound < self.profile.pass_tokens:
            remarks.append(_SMALL_REMARK.format(tokens=self.pass_bound, wanted=self.profile.pass_tokens))
        return "; ".join(remarks)

    @property
    def long_tokens(self) -> int:
        """The tokens of the self-test's long text, which is computed alone; 0 for none."""
        if self.info.pooling == RANK:
            return 0  # its samples have a long one
        return min(self.pass_tokens + _REST if self.isolation else _LONG_TOKENS, self.info.max_tokens)

    def within(self, free: int) -> LlamaCommand:
        """Return this command with passes for `free` bytes of memory."""
        if not ((self._pools_last or self._ranks_last) and self.device.is_cpu):
            return self
        wanted = RANKING_PASS if self._ranks_last else self.profile.pass_tokens
        return replace(self, pass_bound=affordable_pass(wanted, vocabulary=self.vocabulary, free=free))

    @property
    def _pools_last(self) -> bool:
        return self.info.pooling == "last"

    @property
    def _ranks_last(self) -> bool:
        """Whether this is a reranker that reads from left to right. Its pairs are long, so one keeps the engine busy."""
        return self.info.pooling == RANK and reads_last(RANK, self.info.architecture)

    @property
    def _device_pass(self) -> int:
        """The tokens that a device computes at once: as many as its memory allows, since it is fast with many."""
        share = self.device.free_memory // _DEVICE_SHARE // max(1, pass_cost(self.vocabulary))
        room = max(64, share // 64 * 64) if self.device.memory else _FEW_DEVICE_TOKENS
        # The other half of the context may hold the last texts of the slots.
        tokens = min(self.profile.batch_tokens, room, self.context // 2)
        return tokens if self._pools_last or self._ranks_last else max(tokens, self.info.max_tokens)

    @property
    def tuned_at(self) -> str:
        """See `BackendState.tuned_at`."""
        return self.profile.tuned_at

    @property
    def is_replaceable(self) -> bool:
        """Whether an engine on the processors can serve in place of this one."""
        return not self.device.is_cpu

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the engine."""
        return engine_environment()

    def argv(self) -> list[str]:
        """Return the program and its arguments."""
        options: dict[str, object] = {
            "--model": self.model,
            "--host": self.socket,
            "--pooling": self.info.pooling,
            "--ctx-size": self.context,
            "--batch-size": self.pass_tokens,  # one larger than the pass used to assert
            "--ubatch-size": self.pass_tokens,
            "--parallel": self.slots,
            "--device": self.device.name or "none",
            "--threads": self.profile.threads,
            "--threads-batch": self.profile.threads,
            "--threads-http": MAX_CONNECTIONS + 2,  # for connections that we closed and it has not noticed yet
            "--cache-ram": 0,  # the default keeps up to 8 GiB of prompts that no embedding ever uses again
            "--fit": "off",
            "--log-colors": "off",
            "--verbosity": 2,  # warnings; more would be three lines a text
        }
        flags = ["--embeddings", "--no-ui", "--offline", *(["--no-repack"] if self.no_repack else [])]
        if (self._pools_last or self._ranks_last) and self.slots == 1 and self.device.is_cpu:
            # A single slot has no room for a tile beside a short piece. Without flash attention, pieces of any size are exact.
            options["--flash-attn"] = "off"
        if self.isolation:
            options["--slot-save-path"] = self.socket.parent  # nothing is saved there, but without it no slot can be erased
        if not self.device.is_cpu:
            options["--n-gpu-layers"] = _ALL_LAYERS
        if self.slots > 1:
            flags.append("--kv-unified")  # one text may use the whole context, instead of the share of its slot
        return [str(self.executable), *flags, *(str(part) for option in options.items() for part in option)]
