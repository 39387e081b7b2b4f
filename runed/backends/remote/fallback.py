"""A model of this machine that computes while the engine on another machine is away, if its vectors lie in the same space."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from runed.backends.base import Tokens
from runed.backends.remote.space import AGREEMENT, TEXTS, Space
from runed.errors import BackendFaultError, BackendUnavailableError, RunedError, TextTooLongError
from runed.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Substitute:
    """Vectors of the model of this machine.

    Attributes:
        vectors: One vector a text.
        tokens: The tokens of all texts together.
        fingerprint: The name of their space.
    """

    vectors: list[bytes]
    tokens: int
    fingerprint: str


Compute: TypeAlias = Callable[[Sequence[str]], Awaitable[Substitute]]
"""Computes texts, prompts included, with the model of this machine."""


Count: TypeAlias = Callable[[Sequence[str]], Awaitable[list[Tokens]]]
"""Returns the tokens of texts, prompts included, by the model of this machine."""


class Fallback:
    """Computes with another model, after a proof that its vectors lie in the same space.

    Args:
        name: The name of the model.
        compute: Computes with it.
        count: Counts tokens with it.

    Attributes:
        name: As above.
    """

    def __init__(self, name: str, compute: Compute, count: Count) -> None:
        self.name = name
        self._compute = compute
        self._count = count
        self._proven: tuple[str, str] | None = None

    @property
    def is_proven(self) -> bool:
        """Whether its vectors were found to lie in the space of the engine."""
        return self._proven is not None

    async def embed(self, texts: Sequence[str], space: Space, away: BackendUnavailableError) -> Substitute:
        """Compute texts.

        Args:
            texts: The texts.
            space: The space that their vectors must lie in.
            away: Why the engine cannot be had.

        Raises:
            BackendUnavailableError: The other model cannot be had, or its vectors lie in another space.
        """
        with self._told_beside(away):
            if not self.is_proven:
                await self._prove(space)
            answer = await self._compute(texts)
            if (space.name, answer.fingerprint) != self._proven:  # its engine was replaced by another one meanwhile
                await self._prove(space)
                answer = await self._compute(texts)
            return answer

    async def tokenize(self, texts: Sequence[str], space: Space, away: BackendUnavailableError) -> list[Tokens]:
        """Return the tokens of texts; see `embed`. A model of the same space reads the same tokens."""
        with self._told_beside(away):
            if not self.is_proven:
                await self._prove(space)
            return await self._count(texts)

    @contextmanager
    def _told_beside(self, away: BackendUnavailableError) -> Iterator[None]:
        try:
            yield
        except (TextTooLongError, BackendFaultError):  # the text is to blame
            raise
        except RunedError as error:
            raise away.retold(f"{away.message}; the fallback {self.name} cannot be used: {error.message}") from None

    async def _prove(self, space: Space) -> None:
        self._proven = None
        sample = await self._compute(TEXTS)
        if not space.agrees(sample.vectors):
            raise BackendUnavailableError(
                f"its vectors do not lie in the same space (a cosine of {AGREEMENT} is needed); name another model, "
                "or another engine (RUNED_ENGINE) if only that is another one there"
            )
        self._proven = space.name, sample.fingerprint
        _log.warning("fallback computes while the engine is away", fallback=self.name)
