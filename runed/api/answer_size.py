"""The memory of an answer, which is taken before the work for it begins."""

from __future__ import annotations

from runed.api.host import Host
from runed.domain.requests import EmbedOptions
from runed.server import reserve

_BINARY = 8
"""Bytes of a value in an answer of bytes: in the message, and on the wire."""

_TEXT = 24
"""Bytes of a value in an answer of digits."""

_UNKNOWN_VALUES = 1024
"""Values of a vector while the model is not known."""


def reserve_answer(host: Host, texts: int, options: EmbedOptions, *, as_text: bool) -> None:
    """Take the memory of an answer.

    Args:
        host: The daemon.
        texts: The number of vectors.
        options: The options of the call.
        as_text: Whether the vectors are written as digits.

    Raises:
        RunedError: There is none.
    """
    if texts > 1:  # the vector of one text is part of what every request costs
        values = options.dimensions or host.info(options.model).vector_dim or _UNKNOWN_VALUES
        reserve(texts * values * (_TEXT if as_text else _BINARY))
