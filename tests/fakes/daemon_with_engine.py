"""A process that only runs a backend, for tests that kill it: `daemon_with_engine.py <executable> <model> <home>`.

It writes the engine's pid when the engine is ready.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from runed.backends.llama.backend import LlamaBackend
from runed.log import configure_logging
from runed.paths import Paths


async def main() -> None:
    configure_logging()
    executable, model, home = (Path(argument) for argument in sys.argv[1:])
    backend = LlamaBackend(executable=executable, model=model, model_sha256="0" * 64, paths=Paths(home), ctx_size=256)
    await backend.start()
    sys.stdout.write(f"{backend.state.pid}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(main())
