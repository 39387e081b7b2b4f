"""Keeps texts that kill the engine away from it. Such a text is found, refused, and remembered for a while."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from runed.backends.base import TextInput
from runed.errors import BackendFaultError
from runed.log import get_logger

_GUILTY = 6
"""Weight of the deaths after which a text is refused."""

_CRASH, _END = 3, 2
"""Weights of a death: two crashes convict a text, but only three ends that may have come from outside. A text that is computed
while another program ends the engine is not to blame."""

_log = get_logger(__name__)

_T = TypeVar("_T", str, TextInput)
_R = TypeVar("_R")


class EngineDiedError(Exception):
    """The engine died before it answered, or it had to be replaced. Its replacement may be asked the same at once.

    A `Guard` takes it and asks the replacement, so no caller of the backend ever gets it.

    Attributes:
        how: The way in which it ended.
        crashed: Whether it failed by itself, so that a text may be to blame. Otherwise it was ended or stopped from outside,
            as far as one can tell.
    """

    def __init__(self, how: str, *, crashed: bool) -> None:
        super().__init__(how)
        self.how = how
        self.crashed = crashed


@dataclass(slots=True)
class _Suspect:
    """The case of a text with which the engine died.

    Attributes:
        weight: The weight of the deaths so far.
        deaths: Their number.
        how: The way in which the engine ended the last time.
        until: The time at which they are forgotten, in seconds of the monotonic clock.
    """

    weight: int = 0
    deaths: int = 0
    how: str = ""
    until: float = 0.0


class Suspects:
    """The texts that were alone with the engine when it died. Only a hash with a secret key is kept of a text.

    Args:
        seconds: The time for which a text is refused.
        most: The number of texts that are remembered. The oldest is forgotten first.
    """

    def __init__(self, *, seconds: float = 600.0, most: int = 1024) -> None:
        self._seconds = seconds
        self._most = most
        self._key = secrets.token_bytes(32)
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()

    def check(self, texts: Iterable[TextInput]) -> None:
        """Refuse texts that have killed the engine.

        Raises:
            BackendFaultError: One of the texts has.
        """
        if not self._suspects:  # as nearly always: no text is hashed then
            return
        for text in texts:
            suspect = self._suspects.get(self._hash(text))
            if suspect is not None and suspect.weight >= _GUILTY and suspect.until > time.monotonic():
                raise BackendFaultError(
                    f"the engine died {suspect.deaths} times while it had only this text, so the text is not sent to it for "
                    f"{self._seconds / 60:.0f} minutes; leave it out or change it. The last time: {suspect.how}"
                )

    def blame(self, text: TextInput, death: EngineDiedError) -> None:
        """Note that the engine died while it had only this text."""
        key, now = self._hash(text), time.monotonic()
        suspect = self._suspects.pop(key, None)
        if suspect is None or suspect.until <= now:
            suspect = _Suspect()
        suspect.weight += _CRASH if death.crashed else _END
        suspect.deaths += 1
        suspect.how, suspect.until = death.how, now + self._seconds
        self._suspects[key] = suspect
        if len(self._suspects) > self._most:
            self._suspects.popitem(last=False)
        if suspect.weight >= _GUILTY:
            _log.warning("a text is refused, since the engine died of it", deaths=suspect.deaths, seconds=self._seconds)

    def clear(self, texts: Iterable[TextInput]) -> None:
        """Forget the deaths with these texts, since the engine has answered them."""
        if self._suspects:
            for text in texts:
                self._suspects.pop(self._hash(text), None)

    def _hash(self, text: TextInput) -> bytes:
        data = text.encode(errors="surrogatepass") if isinstance(text, str) else text.tobytes()
        return hashlib.blake2b(data, key=self._key, digest_size=16, person=type(text).__name__.encode()).digest()


class Guard:
    """Asks an engine in a way that survives its death.

    If the engine dies, the texts that it had are sent again to its replacement: one by one, and nothing else is with the engine
    meanwhile. A text by which it dies again and again is refused by a BackendFaultError. One by one means two deaths for such a
    text, whatever the number of the others. A death costs a start of the engine, a text alone costs little.

    All methods must be called in one event loop.
    """

    def __init__(self) -> None:
        self._suspects = Suspects()
        self._room = _Room()

    async def ask(self, texts: Sequence[_T], question: Callable[[Sequence[_T]], Awaitable[_R]]) -> list[_R]:
        """Ask a question about texts.

        Args:
            texts: The texts.
            question: Asks the engine about some of them. It raises an EngineDiedError if the engine dies.

        Returns:
            The answer to all texts, or one answer a text if the engine has died.

        Raises:
            BackendFaultError: The engine dies of one of the texts, each time.
        """
        self._suspects.check(texts)
        async with self._room.together() as was_alone:
            try:
                answer = await question(texts)
            except EngineDiedError as death:
                if len(texts) == 1 and was_alone():
                    self._suspects.blame(texts[0], death)
            else:
                self._suspects.clear(texts)
                return [answer]
        _log.warning("the engine died, its texts are tried one by one", texts=len(texts))
        async with self._room.alone():
            return [await self._ask_alone(text, question) for text in texts]

    async def _ask_alone(self, text: _T, question: Callable[[Sequence[_T]], Awaitable[_R]]) -> _R:
        while True:
            self._suspects.check([text])
            try:
                answer = await question([text])
            except EngineDiedError as death:
                self._suspects.blame(text, death)
            else:
                self._suspects.clear([text])
                return answer


class _Room:
    """Lets questions to the engine: several together, or one alone."""

    def __init__(self) -> None:
        self._inside = 0
        self._entered = 0
        self._soloists = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[Callable[[], bool]]:
        """Enter together with others. The value tells whether nobody else has been inside since."""
        while self._soloists:
            await self._change()
        self._inside += 1
        self._entered += 1
        first, number = self._inside == 1, self._entered
        try:
            yield lambda: first and self._entered == number
        finally:
            self._inside -= 1
            self._changed.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Enter when nobody is inside, and keep others out."""
        self._soloists += 1
        try:
            async with self._turn:
                while self._inside:
                    await self._change()
                yield
        finally:
            self._soloists -= 1
            self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
