"""Installs into a home, in a process of its own. Tests start several of these, and kill them.

Argument 1 is the home, argument 2 the manifest, argument 3 the size of the largest file that it may write, in bytes, or -1 for
no limit. It prints one JSON object a line: each progress message, then the model or the error.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

from runed.bootstrap import DownloadPolicy, Progress, install
from runed.errors import RunedError
from runed.paths import Paths
from runed.settings import Settings


def say(**fields: object) -> None:
    """Print an object at once."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def report(progress: Progress) -> None:
    """Print progress."""
    say(message=progress.message, done=progress.bytes_done)


def check_model(_: Path) -> None:
    """Accept any model."""


async def main() -> None:
    """Install."""
    home = Path(sys.argv[1])
    settings = Settings(home=home, manifest=sys.argv[2])
    try:
        installation = await install(
            settings, Paths(home), report=report, check_model=check_model, policy=DownloadPolicy(attempts=1)
        )
    except RunedError as error:
        say(error=error.message)
    else:
        say(model=str(installation.model))


resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
asyncio.run(main())
