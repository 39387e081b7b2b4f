"""Texts before they are sent: whether they can be, and how many go into one request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from runed.errors import InvalidRequestError, InvalidTextError, RequestTooLargeError

LARGE_TEXT = 1024 * 1024
"""UTF-8 bytes from which on a single text is compared with the daemon's limit before it is sent."""

TEXT_OVERHEAD = 6
"""Bytes at most beside the text itself for each text of an encoded batch: the tag and the length."""


def listed(texts: Iterable[str]) -> list[str]:
    """Give the texts of a batch as a list.

    Raises:
        TypeError: It is one text and not many.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"a batch is a list of str, not one {type(texts).__name__}; use embed for one text")
    return list(texts)


def encoded_length(text: str, name: str = "the text", where: dict[str, str] | None = None) -> int:
    """Give the length of a text in UTF-8.

    Args:
        text: The text.
        name: What an error calls it.
        where: What the metadata of an error tells of its place.

    Raises:
        TypeError: It is no text.
        InvalidTextError: It is not valid Unicode.
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
    """Make sure that a text fits into a request of its own.

    Args:
        length: The length that it has in a request, in bytes.
        limit: The bytes that all texts of one request may take.
        name: As for `encoded_length`.
        where: As for `encoded_length`.

    Raises:
        RequestTooLargeError: It does not.
    """
    if length > limit:
        raise RequestTooLargeError(
            f"{name} has {length} bytes, but one request may have {limit}; no model reads as much, so cut it into passages",
            metadata={"limit": str(limit)} | (where or {}),
        )


def measure(text: str, index: int, max_bytes: int) -> int:
    """Give the bytes that a text of a batch takes of a request.

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
    """Cut a batch into requests that keep to the daemon's limits.

    Args:
        lengths: What `measure` gave for each text; none at all give no request.
        max_texts: The texts that one request may have.
        max_bytes: The bytes that they may take.

    Yields:
        Where each request starts and where it ends, as for a slice.
    """
    start = size = 0
    for index, length in enumerate(lengths):
        if index - start == max_texts or size + length > max_bytes:
            yield start, index
            start, size = index, 0
        size += length
    if lengths:
        yield start, len(lengths)


def relocated(error: InvalidRequestError, start: int, count: int) -> InvalidRequestError:
    """Say where in the caller's batch a text stands that the daemon refused as part of one request."""
    if not start or "index" not in error.metadata:
        return error
    moved = type(error)(
        f"in the request that starts with text {start} of the batch, {count} texts long: {error.message}",
        metadata=error.metadata | {"index": str(start + int(error.metadata["index"]))},
        retry_after=error.retry_after,
    )
    moved.reason = error.reason
    return moved
