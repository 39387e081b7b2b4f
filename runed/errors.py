"""The exceptions that runed raises on purpose. This module does not know the wire.

A `RunedError` is an answer to a user. Its text tells the fault, the limit that applies, and the remedy. Its `reason` is a
stable name for programs, and its `metadata` are facts for programs; both travel in `google.rpc.ErrorInfo`. The daemon raises an
error, and the client raises the class of the same reason.
"""

from __future__ import annotations

import re
from typing import Self

WINDOWS_UNSUPPORTED = "Windows is not supported; run runed on Linux, on macOS or inside WSL 2"
"""Text of the error on Windows, which several modules raise."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that turn the direction of a text, and halves of characters (bytes of a name that is not UTF-8)."""


def printable(text: str, *, keep: str = "") -> str:
    """Escape the characters of a text that could steer a terminal. Names in files, and answers of servers, may hold some.

    Args:
        text: The text, such as the name of a model.
        keep: Characters that are not escaped.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


MOST_REPEATED = 120
"""Most characters of one value that an error repeats, such as a name or a setting."""

MOST_TOLD = 4000
"""Most characters of a message. It travels in the headers of gRPC, of which clients read 8 KB or more."""


def bounded(text: str, most: int = MOST_TOLD) -> str:
    """Return a text, without its middle if it is too long. In an error, the remedy stands at the end.

    Args:
        text: The text.
        most: The most characters that are kept.
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}[... {len(text) - most:,} characters ...]{text[-(most // 2) :]}"


def quoted(value: object) -> str:
    """Return a value as an error repeats it: in quotes, in one line, and without the middle of a long one."""
    return repr(bounded(value, MOST_REPEATED)) if isinstance(value, str) else bounded(repr(value), MOST_REPEATED)


def sentence(text: str) -> str:
    """Return a text as people may see it: bounded, and without what could steer a terminal, but with line ends and tabs."""
    return printable(bounded(text), keep="\n\t")


_UNPRINTABLE_BYTES = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")


def printable_bytes(output: bytes) -> bytes:
    """Replace the control characters in the output of a program by "?", but not its line ends and tabs."""
    return _UNPRINTABLE_BYTES.sub(b"?", output)


class RunedWarning(UserWarning):
    """A call works, but not as its caller may expect. Its text is a `sentence`."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


class RunedError(Exception):
    """The base of all errors of runed. Its text is a `sentence`.

    Attributes:
        reason: The stable name of the kind of error, in capitals.
        metadata: Facts for programs, such as `{"tokens": "600", "limit": "512"}`.
        retry_after: Seconds after which another try can help; None if no try can.
    """

    reason: str = "INTERNAL"

    def __init__(self, message: str, *, metadata: dict[str, str] | None = None, retry_after: float | None = None) -> None:
        super().__init__(sentence(message))
        self.metadata = metadata or {}
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self)

    def retold(self, message: str = "", **facts: str) -> Self:
        """Return a copy.

        Args:
            message: The sentence of the copy; "" keeps that of the original.
            facts: Further metadata of the copy.
        """
        # Without `__init__`, which may have other arguments in a subclass.
        copy = type(self).__new__(type(self), sentence(message or self.message))
        copy.__dict__.update(self.__dict__, metadata=self.metadata | facts)
        return copy


class SettingsError(RunedError):
    """An environment variable, `config.json` or argument has a value that runed cannot use."""

    reason = "BAD_SETTING"


class UnsupportedPlatformError(RunedError):
    """runed does not run on this operating system or processor."""

    reason = "UNSUPPORTED_PLATFORM"


# Requests


class InvalidRequestError(RunedError):
    """The request itself is wrong. Another try does not help."""

    reason = "INVALID_REQUEST"


class EmptyTextError(InvalidRequestError):
    """A text is empty or only white space, or the model reads nothing of it. Its vector would mean nothing."""

    reason = "EMPTY_TEXT"


class InvalidTextError(InvalidRequestError):
    """A text has a NUL or is not valid Unicode."""

    reason = "INVALID_TEXT"


class TextTooLongError(InvalidRequestError):
    """A text has more tokens than the model reads; `metadata` has `tokens`, `limit` and, in a batch, `index`."""

    reason = "TEXT_TOO_LONG"


class EmptyBatchError(InvalidRequestError):
    """A batch has no text."""

    reason = "EMPTY_BATCH"


class BatchTooLargeError(InvalidRequestError):
    """A batch has more texts than one request may have, or more bytes than the queue may; `metadata` has sizes and limits."""

    reason = "BATCH_TOO_LARGE"


class BadDimensionsError(InvalidRequestError):
    """The model has no vectors of the requested dimensions; `metadata` has `dimensions`, `min` and `max`."""

    reason = "BAD_DIMENSIONS"


class BadInstructionError(InvalidRequestError):
    """An instruction was given to a text or model that uses none."""

    reason = "BAD_INSTRUCTION"


class BadCentroidsError(InvalidRequestError):
    """A centroid set has other dimensions than the model, is too large or incomplete, or its version is wrong."""

    reason = "BAD_CENTROIDS"


class UnknownModelError(InvalidRequestError):
    """There is no model of the requested name; `metadata` has `models`, the names that exist."""

    reason = "UNKNOWN_MODEL"


class WrongModelKindError(InvalidRequestError):
    """The model embeds and shall rerank, or the other way round; `metadata` has `model`."""

    reason = "WRONG_MODEL_KIND"


class RequestTooLargeError(RunedError):
    """A request message has more bytes than the daemon reads; `metadata` has `limit`."""

    reason = "REQUEST_TOO_LARGE"


class QueueFullError(RunedError):
    """The queue is full; `metadata` has `limit_texts` and `limit_bytes`, and `retry_after` is set."""

    reason = "QUEUE_FULL"


class UnimplementedError(RunedError):
    """This version of the daemon does not know the method or the option."""

    reason = "UNIMPLEMENTED"


# States of the daemon


class BootstrappingError(RunedError):
    """Engine or model are not there yet: they are being downloaded, or the look for them takes longer than a call may wait."""

    reason = "BOOTSTRAPPING"


class ModelNotInstalledError(RunedError):
    """The file of the requested model is not on this machine; `metadata` has `model`."""

    reason = "MODEL_NOT_INSTALLED"


class ModelTooLargeError(RunedError):
    """The engine of a model takes more memory than all engines may; `metadata` has `model`, `bytes` and `limit`."""

    reason = "MODEL_TOO_LARGE"


class ModelBusyError(RunedError):
    """A model that works shall be unloaded; `metadata` has `model`, and `retry_after` is set."""

    reason = "MODEL_BUSY"


class SpaceChangedError(RunedError):
    """An engine on another machine gives vectors of another space than before; `metadata` has `model`."""

    reason = "SPACE_CHANGED"


class NoCentroidSetError(RunedError):
    """There is no centroid set to route by."""

    reason = "NO_CENTROID_SET"


class CentroidStoreError(RunedError):
    """A centroid set could not be kept, on the disk or in memory. The set before it stays."""

    reason = "CENTROIDS_NOT_STORED"


class ShuttingDownError(RunedError):
    """The daemon takes no new calls because it is about to exit."""

    reason = "SHUTTING_DOWN"


class DeadlineExceededError(RunedError):
    """The caller's deadline passed before the answer was ready."""

    reason = "DEADLINE_EXCEEDED"


# Backend


class BackendError(RunedError):
    """The engine failed."""

    reason = "BACKEND_ERROR"


class BackendUnavailableError(BackendError):
    """The engine crashed, cannot be started or is being restarted."""

    reason = "BACKEND_UNAVAILABLE"


class BackendFaultError(BackendError):
    """The engine answered a vector that is not an embedding, such as NaN or zeros, or it died of the text."""

    reason = "BACKEND_FAULT"


class ModelFileError(BackendError):
    """A model file is not a GGUF, is cut short, or is not an embedding model that runed can serve."""

    reason = "BAD_MODEL_FILE"


# Bootstrap


class BootstrapError(RunedError):
    """The engine or the model could not be installed."""

    reason = "BOOTSTRAP_FAILED"


class ManifestError(BootstrapError):
    """The manifest is not JSON, has another version, or lacks the platform or the variant."""

    reason = "BAD_MANIFEST"


class DownloadError(BootstrapError):
    """A file could not be downloaded, in spite of all retries."""

    reason = "DOWNLOAD_FAILED"


class VerificationError(BootstrapError):
    """A downloaded file has another size or SHA-256 than in the manifest."""

    reason = "VERIFICATION_FAILED"


class DiskSpaceError(BootstrapError):
    """The disk has not enough room for an installation."""

    reason = "DISK_FULL"


class ArchiveError(BootstrapError):
    """An archive is broken, or holds a member that would leave its folder."""

    reason = "BAD_ARCHIVE"


# Lifecycle


class LifecycleError(RunedError):
    """The daemon could not be started, found or stopped."""

    reason = "LIFECYCLE"


class KeptStoppedError(LifecycleError):
    """`runed stop --for` keeps the daemon stopped; `metadata` has the `seconds` that are left."""

    reason = "KEPT_STOPPED"


class AlreadyRunningError(LifecycleError):
    """Another daemon serves this home."""

    reason = "ALREADY_RUNNING"


class ForeignPathError(LifecycleError):
    """A path of runed belongs to another user or program. It is left untouched."""

    reason = "FOREIGN_PATH"


class DaemonStartError(LifecycleError):
    """A started daemon ended, or did not listen in time. The message ends with the tail of its log."""

    reason = "DAEMON_START_FAILED"


class DaemonUnavailableError(LifecycleError):
    """No daemon answers on the socket. It may not be started from here, or it has ended again."""

    reason = "DAEMON_UNAVAILABLE"


class ClosedError(RunedError):
    """A client was used after it had been closed."""

    reason = "CLOSED"


def error_of_reason(
    reason: str,
    message: str,
    *,
    metadata: dict[str, str] | None = None,
    retry_after: float | None = None,
    otherwise: type[RunedError] = RunedError,
) -> RunedError:
    """Return the error that came over the wire.

    Args:
        reason: The reason, as in `RunedError.reason`. An unknown reason of a newer daemon is kept.
        message: The sentence for people.
        metadata: As in `RunedError.metadata`.
        retry_after: As in `RunedError.retry_after`.
        otherwise: The class of an error with an unknown reason.
    """
    cls = error_for_reason(reason)
    error = (otherwise if cls is RunedError else cls)(message, metadata=metadata, retry_after=retry_after)
    if reason:
        error.reason = reason
    return error


def apology(error: Exception) -> RunedError:
    """Return what a caller is told of an exception that is none of runed's errors. It quotes nothing of the exception."""
    if isinstance(error, MemoryError):
        return RunedError(
            "the system refused memory to the daemon; send less at once, free memory, or raise the daemon's limit (ulimit -v)"
        )
    return RunedError("the daemon failed at this call; its log says where, please report it")


def error_for_reason(reason: str) -> type[RunedError]:
    """Return the class of a reason that came over the wire; `RunedError` for an unknown reason of a newer daemon."""
    pending = [RunedError]
    while pending:
        cls = pending.pop()
        if cls.reason == reason:
            return cls
        pending.extend(cls.__subclasses__())
    return RunedError
