"""A process that only runs a backend, for tests that kill it: `daemon_with_engine.py <home> <model> [<llama-server>]`.

Without a `llama-server`, ONNX Runtime serves. It writes the engine's pid when the engine is ready.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from runed.backends.llama.backend import LlamaBackend
from runed.backends.onnx.backend import OnnxBackend
from runed.log import configure_logging
from runed.paths import Paths


async def main() -> None:
    configure_logging()
    home, model, *executable = (Path(argument) for argument in sys.argv[1:])
    what: Any = {"model": model, "model_sha256": "ab" * 32, "paths": Paths(home), "ctx_size": 256}
    backend = LlamaBackend(executable=executable[0], **what) if executable else OnnxBackend(**what)
    await backend.start()
    sys.stdout.write(f"{backend.state.pid}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(main())
