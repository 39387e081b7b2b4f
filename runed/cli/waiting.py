"""The client of a command. It shows the user why the daemon cannot answer yet."""

from __future__ import annotations

import runed
from runed.cli.progress import ProgressDisplay

ANSWER_SECONDS = 5.0
"""Seconds that a daemon may take to answer `Info` or `Health`, which are cheap."""

PHASES = {
    runed.Phase.FETCHING_LLAMA_SERVER: "fetching the engine",
    runed.Phase.FETCHING_MODEL: "fetching the model",
    runed.Phase.STARTING_LLAMA_SERVER: "starting the engine",
}


def connect(display: ProgressDisplay) -> runed.Client:
    """Connect to the daemon, and start it if none runs. A waiting call shows its phase on the display."""

    def show(health: runed.Health) -> None:
        if health.phase:
            step = PHASES.get(health.phase, "loading")
            display.update(step, health.bytes_done, health.bytes_total, detail=health.message)

    return runed.connect(on_progress=show)
