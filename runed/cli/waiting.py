"""The connection of a command, and what its user sees until the daemon can answer."""

from __future__ import annotations

import runed
from runed.cli.progress import ProgressDisplay

ANSWER_SECONDS = 5.0
"""How long a daemon may take to tell of itself, which costs it next to nothing."""

PHASES = {
    runed.Phase.FETCHING_LLAMA_SERVER: "fetching the engine",
    runed.Phase.FETCHING_MODEL: "fetching the model",
    runed.Phase.STARTING_LLAMA_SERVER: "starting the engine",
}


def connect(display: ProgressDisplay) -> runed.Client:
    """Give a client of the daemon, which is started if need be; each call shows on the display what it is waiting for."""

    def show(health: runed.Health) -> None:
        if health.phase:
            step = PHASES.get(health.phase, "loading")
            display.update(step, health.bytes_done, health.bytes_total, detail=health.message)

    return runed.connect(on_progress=show)
