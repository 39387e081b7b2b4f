"""The client of a command. It shows the user why the daemon cannot answer yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import runed
from runed.cli.boundary import complain
from runed.cli.progress import ProgressDisplay
from runed.cli.watching import watched
from runed.client.progress import GOES_ON
from runed.paths import Paths
from runed.settings import load_settings

ANSWER_SECONDS = 5.0
"""Seconds that a daemon may take to answer `Info` or `Health`, which are cheap."""

PHASES = {
    runed.Phase.FETCHING_LLAMA_SERVER: "fetching the engine",
    runed.Phase.FETCHING_MODEL: "fetching the model",
    runed.Phase.STARTING_LLAMA_SERVER: "starting the engine",
}

_START = "start"
"""The step of an engine that starts without the call telling it."""


@contextmanager
def connect(display: ProgressDisplay, model: str | None = "") -> Iterator[runed.Client]:
    """Connect to the daemon for a block, and start it if none runs. A waiting call shows its phase on the display.

    Args:
        display: The display.
        model: The model of the calls, as for `watched`.

    Raises:
        LifecycleError: The daemon answered nothing for a minute.
    """
    downloading = False

    def show(health: runed.Health) -> None:
        nonlocal downloading
        downloading = health.phase in {runed.Phase.FETCHING_LLAMA_SERVER, runed.Phase.FETCHING_MODEL}
        if health.phase:
            step = PHASES.get(health.phase, "loading")
            display.update(step, health.bytes_done, health.bytes_total, detail=health.message)

    def show_start(message: str) -> None:
        if display.shown in {"", _START}:  # otherwise the call itself shows it, or the texts of a job are shown
            display.update(_START, detail=message)

    with watched(Paths(load_settings().home), model=model, on_start=show_start), runed.connect(on_progress=show) as client:
        try:
            yield client
        except KeyboardInterrupt:
            if downloading:
                display.drop()
                complain(GOES_ON)
            raise
