"""Checks of texts before they are sent, and the splitting of a batch into requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from runed.errors import InvalidTextError, RequestTooLargeError, RunedError

LARGE_TEXT = 1024 * 1024
"""Bytes of UTF-8 above which a single text is compared with the daemon's limit before it is sent."""

TEXT_OVERHEAD = 6
"""Most bytes for each text of an encoded batch besides the text itself: the tag and the length."""


def listed(texts: Iterable[str]) -> list[str]:
    """Return the texts of a batch as a list.

    Raises:
        TypeError: The argument is one text and not many.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"a batch is a list of str, not one {type(texts).__name__}; use embed for one text")
    return list(texts)


def encoded_length(text: str, name: str = "the text", where: dict[str, str] | None = None) -> int:
    """Return the number of bytes that a text has in UTF-8.

    Args:
        text: The text.
        name: The name of the text in an error.
        where: The metadata of an error, which tells the place of the text.

    Raises:
        TypeError: The argument is not a text.
        InvalidTextError: The text is not valid Unicode.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} is a {type(text).__name__}, but must be a str")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidTextError(
            f"{name} is not valid Unicode: it has half of a surrogate pair at position {error.start}; "
            "it was most likely decoded by the wrong codec, or cut in the middle of a character",
            metadata=where,
        ) from None


def check_length(length: int, limit: int, name: str = "the text", where: dict[str, str] | None = None) -> None:
    """Check that a text fits into a request alone.

    Args:
        length: The bytes that the text takes in a request.
        limit: The bytes that all texts of one request may take.
        name: As for `encoded_length`.
        where: As for `encoded_length`.

    Raises:
        RequestTooLargeError: The text does not fit.
    """
    if length > limit:
        raise RequestTooLargeError(
            f"{name} has {length} bytes, but one request may have {limit}; no model reads as much, so cut it into passages",
            metadata={"limit": str(limit)} | (where or {}),
        )


def measure(text: str, index: int, max_bytes: int) -> int:
    """Return the bytes that a text of a batch takes in a request.

    Args:
        text: The text.
        index: Its place in the batch.
        max_bytes: The bytes that all texts of one request may take.

    Raises:
        TypeError: As for `encoded_length`.
        InvalidTextError: As for `encoded_length`.
        RequestTooLargeError: As for `check_length`.
    """
    name, where = f"text {index} of the batch", {"index": str(index)}
    length = encoded_length(text, name, where) + TEXT_OVERHEAD
    check_length(length, max_bytes, name, where)
    return length


def split(lengths: Sequence[int], max_texts: int, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Split a batch into requests within the daemon's limits.

    Args:
        lengths: The bytes that each text takes, from `measure`; without texts there is no request.
        max_texts: The texts that one request may have.
        max_bytes: The bytes that these texts may take.

    Yields:
        The start and the end of each request, as for a slice.
    """
    start = size = 0
    for index, length in enumerate(lengths):
        if index - start == max_texts or size + length > max_bytes:
            yield start, index
            start, size = index, 0
        size += length
    if lengths:
        yield start, len(lengths)


def relocated(error: RunedError, start: int, count: int) -> RunedError:
    """Extend an error of a request by the place of the refused text in the caller's batch."""
    if not start or "index" not in error.metadata:
        return error
    return error.retold(
        f"in the request that starts with text {start} of the batch, {count} texts long: {error.message}",
        index=str(start + int(error.metadata["index"])),
    )
