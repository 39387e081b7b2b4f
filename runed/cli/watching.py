"""Watches the daemon while a command waits for it: no wait is silent for long, and none on a dead end is for ever."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from runed.cli.boundary import complain
from runed.errors import DaemonUnavailableError, DeadlineExceededError, LifecycleError, RunedError
from runed.lifecycle.presence import Condition, observe
from runed.paths import Paths

_PAUSE = 1.0
"""Seconds between two questions. A shorter command asks none."""

_ANSWER_SECONDS = 2.5
"""Seconds that Health may take. So a user gets a word within five seconds."""

PATIENCE = 60.0
"""Seconds for which a daemon may answer nothing before the command gives up. A call waits as long for a connection."""

_HOPELESS = {Condition.STOPPED, Condition.OVERLOADED}
"""Conditions that may last for ever. A start and a drain have limits of their own."""


_WAY_OUT = "if it never answers, end it with `runed stop`, which interrupts its jobs"
"""What to do about a daemon that was silent for long. Earlier it would end a healthy one that is starting or busy."""


@contextmanager
def watched(
    paths: Paths,
    *,
    patience: float | None = PATIENCE,
    model: str | None = "",
    on_start: Callable[[str], None] = lambda _message: None,
) -> Iterator[None]:
    """Watch the daemon during the block. Tell the user when it does not answer, and why.

    Args:
        paths: The home.
        patience: Seconds after which a daemon that answers nothing ends the block; None if the block has a limit of its own.
        model: The model that the block waits for; "" for the default model, None if only the daemon knows which one it is.
        on_start: Called in another thread with a sentence, while the engine of the model starts.

    Raises:
        LifecycleError: The daemon answered nothing for `patience` seconds.
    """
    ended = threading.Event()
    lock = threading.Lock()

    def show_start(message: str) -> None:
        with lock:
            if not ended.is_set():
                on_start(message)

    watch = _Watch(paths, patience, ended, model, show_start)
    before = signal.signal(signal.SIGALRM, watch.interrupt)
    threading.Thread(target=watch.run, name="runed-watch", daemon=True).start()
    try:
        yield
    finally:
        with lock:  # nothing is shown after this
            ended.set()
        signal.signal(signal.SIGALRM, before)


class _Watch:
    def __init__(
        self,
        paths: Paths,
        patience: float | None,
        ended: threading.Event,
        model: str | None,
        on_start: Callable[[str], None],
    ) -> None:
        self._model = model
        self._on_start = on_start
        self._paths = paths
        self._patience = patience
        self._ended = ended
        self._word = ""
        self._told_way_out = patience is not None  # the error at the end tells it then
        self._silent_since: float | None = None
        self._failing = False

    def run(self) -> None:
        """Ask for Health again and again, and tell each new reason why the daemon does not answer."""
        while not self._ended.wait(_PAUSE):
            asked = time.monotonic()
            word = self._look(asked)
            if self._ended.is_set():
                return
            if word and word != self._word:
                complain(f"waiting: {word}")
                self._word = word
            if self._silent_since is not None and asked - self._silent_since >= PATIENCE and not self._told_way_out:
                complain(f"waiting: it answered nothing for {PATIENCE:g} s; {_WAY_OUT}")
                self._told_way_out = True
            if self._patience is not None and self._silent_since is not None and asked - self._silent_since >= self._patience:
                # A signal, since only that ends a system call in which the main thread waits.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                return

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """End the wait of the main thread."""
        if not self._ended.is_set():
            raise LifecycleError(f"gave up after {self._patience:g} s without an answer: {self._word}; {_WAY_OUT}")

    def _look(self, now: float) -> str:
        """Return what is worth telling of the daemon, and note whether it is silent for no good reason."""
        from runed.lifecycle.asking import Asker  # noqa: PLC0415 # 5 ms that a short command never spends

        silent_since, self._silent_since = self._silent_since, None
        try:
            with Asker(self._paths, timeout=_ANSWER_SECONDS) as asker:
                health = asker.health(self._model or "", detailed=self._model is None)
        except (DaemonUnavailableError, DeadlineExceededError):
            seen = observe(self._paths)
            if seen.condition in _HOPELESS:
                self._silent_since = now if silent_since is None else silent_since
            return "" if seen.condition is Condition.ABSENT else str(seen)
        except RunedError:
            return ""  # the command itself meets it and tells it
        if health.status == "SHUTTING_DOWN":
            return f"the daemon is shutting down: {health.message}"
        if health.status == "DEGRADED":
            was_failing, self._failing = self._failing, True
            # A command that fails by this tells it itself, before the next look.
            return f"embeddings fail for now: {health.message}" if was_failing else ""
        states = [(health.status, health.message), *((model.status, model.message) for model in health.models)]
        if message := next((message for status, message in states if status == "LOADING"), ""):
            self._on_start(message)
        return ""
