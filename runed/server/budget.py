"""The memory that all requests in flight share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Protocol

from runed.errors import QueueFullError, RequestTooLargeError, RunedError

DEFAULT_LIMIT = 256 * 1024 * 1024
"""Bytes of the budget where nobody sets another limit."""

SMALL = 64 * 1024
"""Bytes up to which a request is small. A part of the budget is for small requests alone, so that Health has always room."""

SMALL_RESERVE = 8
"""Divisor of the budget that gives that part."""

EVICTED = 16
"""Divisor of the budget that gives the bytes to free at once, since each search for them looks at all requests."""

LARGE = 1024 * 1024
"""Bytes of all requests together from which on it is a relief that one of them gives bytes back."""

RELIEF_SECONDS = 1.0
"""Seconds from a relief to `on_relief`, so that one call of it serves many requests."""

RETRY_SECONDS = 1.0
"""Seconds after which a refused request may be tried again."""


class Holder(Protocol):
    """A request that holds memory."""

    def waits_since(self, now: float) -> float | None:
        """Return the time since which the request waits for its client, or None if the client waits for us."""
        ...

    def evict(self, error: RunedError) -> None:
        """End the request for this reason."""
        ...


class Budget:
    """Bounds the bytes that all requests in flight hold together.

    These are bodies, unfinished or being worked on, and the answers that they lead to. If a request needs more than is left,
    requests that wait for their clients are ended, the one that waits for the longest time first. If none waits, the request
    itself is refused.

    Args:
        limit: The bytes.
        on_refusal: Called for each request that is refused or ended for want of memory.
        on_relief: Called some time after a request has given bytes back while all requests held `LARGE` bytes or more.

    Attributes:
        used: The bytes that are held.
    """

    def __init__(
        self,
        limit: int = DEFAULT_LIMIT,
        on_refusal: Callable[[], None] | None = None,
        on_relief: Callable[[], None] | None = None,
    ) -> None:
        self.used = 0
        self._on_refusal = on_refusal
        self._on_relief = on_relief
        self._limit = limit
        self._accounts: dict[Account, Holder] = {}
        self._relief: asyncio.TimerHandle | None = None

    def open(self, holder: Holder) -> Account:
        """Return the account of a new request."""
        account = Account(self)
        self._accounts[account] = holder
        return account

    def take(self, account: Account, size: int) -> None:
        """Take bytes for an account; see `Account.take`."""
        limit = self._limit if account.held + size <= SMALL else self._limit - self._limit // SMALL_RESERVE
        if account.held + size > limit:
            raise RequestTooLargeError(
                f"this request alone, with its answer, would need {account.held + size} bytes, and may have {limit} of "
                "RUNED_REQUEST_MEMORY; send fewer or smaller texts at once",
                metadata={"limit": str(limit)},
            )
        excess = self.used + size - limit
        if excess > 0:
            self._evict(max(excess, self._limit // EVICTED))
            if account not in self._accounts or self.used + size > limit:
                raise self._refusal()
        self.used += size
        account.held += size

    def forget(self, account: Account) -> None:
        """Give back all bytes of an account, for ever."""
        self.give_back(account, account.held)
        self._accounts.pop(account, None)

    def give_back(self, account: Account, size: int) -> None:
        """Give back bytes of an account; see `Account.give_back`."""
        size = min(size, account.held)
        if size and self.used >= LARGE and self._on_relief is not None and self._relief is None:
            # An empty context: that of the current task may hold a request.
            self._relief = asyncio.get_running_loop().call_later(RELIEF_SECONDS, self._relieve, context=Context())
        self.used -= size
        account.held -= size

    def _relieve(self) -> None:
        self._relief = None
        if self._on_relief is not None:
            self._on_relief()

    def _evict(self, size: int) -> None:
        """End requests that wait for their clients, until `size` bytes are free or none waits."""
        now = asyncio.get_running_loop().time()
        waiting = [
            (since, account, holder)
            for account, holder in self._accounts.items()
            if (since := holder.waits_since(now)) is not None
        ]
        for _, account, holder in sorted(waiting, key=lambda entry: entry[0]):
            if size <= 0:
                return
            size -= account.held
            account.close()
            holder.evict(self._refusal())

    def _refusal(self) -> QueueFullError:
        if self._on_refusal is not None:
            self._on_refusal()
        return QueueFullError(
            f"all requests in flight together would need more than {self._limit} bytes, the limit RUNED_REQUEST_MEMORY; try "
            "again in a moment, or send fewer or smaller requests at once",
            metadata={"limit": str(self._limit)},
            retry_after=RETRY_SECONDS,
        )


class Account:
    """The bytes that one request holds.

    It does not hold the request itself: it is in the context of each timer that was set for the request, and asyncio keeps a
    cancelled timer until its time.

    Attributes:
        held: The bytes.
        owed: The texts of a stream that are not answered yet.
    """

    __slots__ = ("_base", "_budget", "held", "owed")

    def __init__(self, budget: Budget) -> None:
        self.held = 0
        self.owed = 0
        self._base = 0
        self._budget = budget

    def take(self, size: int, *, base: bool = False) -> None:
        """Take bytes of the budget.

        Args:
            size: The bytes that the request will hold besides those that it holds already.
            base: Whether the request holds them until its end, whatever becomes of its body.

        Raises:
            QueueFullError: They are not left, and no other request can be ended for them.
            RequestTooLargeError: The request may never have so many.
        """
        self._budget.take(self, size)
        self._base += size if base else 0

    def give_back(self, size: int) -> None:
        """Give bytes back that the request does not hold any more. More than it holds counts as all."""
        self._budget.give_back(self, size)

    def forget_body(self) -> None:
        """Give back all but the base."""
        self.give_back(max(0, self.held - self._base))

    def close(self) -> None:
        """Give all bytes back, at the end of the request. Nothing can be taken any more. A second close does nothing."""
        self._budget.forget(self)


_account: ContextVar[Account | None] = ContextVar("runed_account", default=None)


def enter(account: Account) -> None:
    """Let the current task work for a request."""
    _account.set(account)


def reserve(size: int) -> None:
    """Take bytes for the request that the current task works for, such as those of its answer.

    Args:
        size: The bytes.

    Raises:
        RunedError: See `Account.take`.
    """
    if (account := _account.get()) is not None:
        account.take(size)


def owe(texts: int) -> None:
    """Tell that the stream that the current task works for has got texts, or, below 0, has answered some.

    While the daemon owes answers, a silent client waits for the daemon. Its stream is not ended to free memory.
    """
    if (account := _account.get()) is not None:
        account.owed += texts


def forget_message() -> None:
    """Give back what the stream that the current task works for took for its last message, which was dealt with."""
    if (account := _account.get()) is not None:
        account.forget_body()
