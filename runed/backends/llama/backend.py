"""`llama-server` as an Embedder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from runed.backends.engine.backend import EngineBackend
from runed.backends.engine.timings import Timings
from runed.backends.gguf import read_model
from runed.backends.llama.command import CONTEXT_STEP, LlamaCommand
from runed.backends.llama.http import LlamaHTTP
from runed.backends.llama.launcher import LlamaLauncher
from runed.backends.llama.profile import Profile, choose_profile
from runed.backends.llama.quirks import Quirks
from runed.backends.model_info import model_info
from runed.domain.device import CPU, Device
from runed.domain.model_spec import ModelKind
from runed.paths import Paths


class LlamaBackend(EngineBackend):
    """Embeds with a `llama-server` child. The child is started when it is needed, and replaced when it dies.

    Constructing it reads the model's metadata, which takes 0.1 s for a large vocabulary, and starts nothing.

    Args:
        executable: The `llama-server`.
        model: The GGUF.
        model_sha256: The SHA-256 of the GGUF, in hexadecimal.
        paths: The home. Only one backend at a time may use it, as its daemon's lock ensures.
        ctx_size: The context in tokens; clamped to the model's, and rounded up to a multiple of 256 as the engine would do.
        pooling: The pooling instead of that of the GGUF, or "".
        profile: The number of texts at once and of threads, or the name of a profile.
        device: The device that computes.
        holds_home: Returns whether the home is still this process's. Otherwise no engine is started, and no file removed.
        timings: Time limits for the engine.

    Raises:
        ModelFileError: The GGUF cannot be used.
    """

    _kind: ClassVar[ModelKind] = ModelKind.EMBEDDING

    def __init__(
        self,
        *,
        executable: Path,
        model: Path,
        model_sha256: str,
        paths: Paths,
        ctx_size: int,
        pooling: str = "",
        profile: str | Profile = "balanced",
        device: Device = CPU,
        holds_home: Callable[[], bool] = lambda: True,
        timings: Timings = Timings(),  # noqa: B008 # immutable
    ) -> None:
        self._metadata = metadata = read_model(model, self._kind, pooling=pooling)
        context = -(-min(ctx_size, metadata.context_length) // CONTEXT_STEP) * CONTEXT_STEP
        info = model_info(model, metadata, sha256=model_sha256, context=context)
        executable = executable.absolute()  # the child works in another directory
        quirks = Quirks(paths.engine_quirks, executable, info, device)
        if isinstance(profile, str):
            key = quirks.engine_and_model()
            profile = choose_profile(profile, pooling=metadata.pooling, tuned=paths.tuning, key=key, device=device)
        command = LlamaCommand(
            executable=executable,
            model=model.absolute(),
            socket=paths.engine_socket,
            log=paths.engine_log,
            info=info,
            context=context,
            profile=profile,
            device=device,
            vocabulary=metadata.vocabulary,
        )
        launcher = LlamaLauncher(
            command,
            connect=self._connect,
            eos_id=metadata.eos_id if metadata.pooling == "last" else None,
            quirks=quirks,
            paths=paths,
            holds_home=holds_home,
            timings=timings,
        )
        super().__init__(launcher, timings)

    def _connect(self, command: LlamaCommand) -> LlamaHTTP:
        """Make the interface of a server."""
        return LlamaHTTP(command.socket, dim=command.info.dim, max_tokens=command.info.max_tokens, isolation=command.isolation)
