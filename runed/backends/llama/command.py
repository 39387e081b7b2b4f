"""The command line of `llama-server`, and the limits of a micro-batch that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runed.backends.base import BatchLimits
from runed.backends.llama.http import MAX_CONNECTIONS, Isolation
from runed.backends.llama.profile import Profile
from runed.domain.device import CPU, Device
from runed.domain.model import ModelInfo

CONTEXT_STEP = 256
"""Step of a context in tokens: llama.cpp rounds a context up to a multiple of it. Measured: `-c 300` accepts texts of 511
tokens."""

_LAST_MICRO_BATCH = 60
"""Tokens that the engine computes at once, for models with last-token pooling. Three reasons:

- A text may span several micro-batches, and each token of a micro-batch costs two buffers of the vocabulary's size.
- The kernels take 4 rows at once, so it is a multiple of 4.
- From 64 rows on, llama.cpp's flash attention computes in tiles on a CPU. Their bounds depend on the place of a text in the
  context, and so does its vector. Measured on a random-weight Qwen3-0.6B in q6_K: cosines down to 0.9994, and 1 below 64
  rows."""

_MORE_TOKENS = 12
"""Tokens of the long text of the self-test beyond those of a micro-batch."""

_ALL_LAYERS = 999
"""More layers than any model has."""

_TOKEN_BYTES = 1_250_000
"""Bytes that each token of a micro-batch costs on a device, for a vocabulary of 151,936: two buffers of float32."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCommand:
    """One way to run `llama-server` on a model.

    Attributes:
        executable: The program.
        model: The GGUF.
        socket: The UNIX socket to listen on.
        info: The description of the model.
        context: The context in tokens, a multiple of `CONTEXT_STEP`.
        profile: The number of texts at once and of threads.
        no_repack: Whether to disable the repacked kernels, which crash some engines.
        one_slot: Whether to compute texts one by one, for engines whose vectors depend on the other texts of a batch.
        device: The device that computes.
    """

    executable: Path
    model: Path
    socket: Path
    info: ModelInfo
    context: int
    profile: Profile
    no_repack: bool = False
    one_slot: bool = False
    device: Device = CPU

    @property
    def slots(self) -> int:
        """The most texts that are computed at once."""
        return 1 if self.one_slot else self.profile.slots

    @property
    def limits(self) -> BatchLimits:
        """See `Embedder.limits`."""
        # If the engine had to cut a batch, a text's tokens would be computed beside other tokens than when it is alone.
        return BatchLimits(texts=self.slots, tokens=min(self.profile.batch_tokens, self._batch))

    @property
    def isolation(self) -> Isolation | None:
        """The facts for `Isolation`; None where texts of several slots do not share a context."""
        return Isolation(self.slots, self._batch) if self.slots > 1 and self.info.pooling == "last" else None

    @property
    def remark(self) -> str:
        """A sentence for people about the quirks that this command avoids, or ""."""
        slow = self.one_slot and self.profile.slots > 1
        return "; ".join([*([_NO_REPACK_REMARK] if self.no_repack else []), *([_ONE_SLOT_REMARK] if slow else [])])

    @property
    def long_tokens(self) -> int:
        """The tokens of the long text of the self-test: more than are computed at once where texts share a context."""
        at_once = self._batch if self.info.pooling == "last" else _LAST_MICRO_BATCH
        return min(at_once + _MORE_TOKENS, self.info.max_tokens)

    @property
    def _batch(self) -> int:
        """The tokens that the engine computes at once."""
        if not self.device.is_cpu:
            return self._device_batch
        # Mean and cls pooling need a whole text in one micro-batch.
        return _LAST_MICRO_BATCH if self.info.pooling == "last" else self.info.max_tokens

    @property
    def _device_batch(self) -> int:
        """The tokens that a device computes at once: as many as its memory allows, since it is fast with many."""
        share = self.device.free_memory // _DEVICE_SHARE // _TOKEN_BYTES
        room = max(64, share // 64 * 64) if self.device.memory else _FEW_DEVICE_TOKENS
        # The other half of the context may hold the last texts of the slots.
        tokens = min(self.profile.batch_tokens, room, self.context // 2)
        return tokens if self.info.pooling == "last" else max(tokens, self.info.max_tokens)

    def argv(self) -> list[str]:
        """Return the program and its arguments."""
        options: dict[str, object] = {
            "--model": self.model,
            "--host": self.socket,
            "--pooling": self.info.pooling,
            "--ctx-size": self.context,
            "--batch-size": self._batch,  # one larger than the micro-batch used to assert
            "--ubatch-size": self._batch,
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
        if self.isolation:
            options["--slot-save-path"] = self.socket.parent  # nothing is saved there, but without it no slot can be erased
        if not self.device.is_cpu:
            options["--n-gpu-layers"] = _ALL_LAYERS
        if self.slots > 1:
            flags.append("--kv-unified")  # one text may use the whole context, instead of the share of its slot
        return [str(self.executable), *flags, *(str(part) for option in options.items() for part in option)]
