"""Every exception that runed raises on purpose; nothing here knows the wire.

A `RunedError` is an answer to a user: its text says what was wrong, which limit applies and what to do now. Its `reason` is the
stable, machine-readable name that travels in `google.rpc.ErrorInfo`, and its `metadata` the facts beside it. The daemon raises
these; the client turns an answer's reason back into the same class.
"""

from __future__ import annotations

WINDOWS_UNSUPPORTED = "Windows is not supported; run runed on Linux, on macOS or inside WSL 2"


class RunedError(Exception):
    """The base of all errors of runed.

    Attributes:
        reason: The stable name of the kind of error, in capitals.
        metadata: Facts for programs, such as `{"tokens": "600", "limit": "512"}`.
        retry_after: Seconds after which trying again can help, or None if it cannot.
    """

    reason: str = "INTERNAL"

    def __init__(self, message: str, *, metadata: dict[str, str] | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.metadata = metadata or {}
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self)


class SettingsError(RunedError):
    """An environment variable, `config.json` or argument has a value that runed cannot use."""

    reason = "BAD_SETTING"


class UnsupportedPlatformError(RunedError):
    """This operating system or processor is not one that runed runs on."""

    reason = "UNSUPPORTED_PLATFORM"


# Requests


class InvalidRequestError(RunedError):
    """The request itself is wrong; sending it again will not help."""

    reason = "INVALID_REQUEST"


class EmptyTextError(InvalidRequestError):
    """A text is empty or only white space, so that a vector of it would mean nothing."""

    reason = "EMPTY_TEXT"


class InvalidTextError(InvalidRequestError):
    """A text has a NUL or is not valid Unicode."""

    reason = "INVALID_TEXT"


class TextTooLongError(InvalidRequestError):
    """A text has more tokens than the model reads; metadata holds `tokens`, `limit` and, in a batch, `index`."""

    reason = "TEXT_TOO_LONG"


class EmptyBatchError(InvalidRequestError):
    """A batch holds no text."""

    reason = "EMPTY_BATCH"


class BatchTooLargeError(InvalidRequestError):
    """A batch holds more texts than one request, or more bytes than the queue, may; metadata holds what and the limits."""

    reason = "BATCH_TOO_LARGE"


class BadDimensionsError(InvalidRequestError):
    """The model gives no vectors of so many values; metadata holds `dimensions`, `min` and `max`."""

    reason = "BAD_DIMENSIONS"


class BadInstructionError(InvalidRequestError):
    """An instruction was given where none can be used."""

    reason = "BAD_INSTRUCTION"


class BadCentroidsError(InvalidRequestError):
    """A centroid set is not one: of another dimension than the model, too large, incomplete, or not what its version says."""

    reason = "BAD_CENTROIDS"


class RequestTooLargeError(RunedError):
    """A request message has more bytes than the daemon reads; metadata holds `limit`."""

    reason = "REQUEST_TOO_LARGE"


class QueueFullError(RunedError):
    """As much waits already as may wait; metadata holds `limit_texts` and `limit_bytes`, `retry_after` when to try again."""

    reason = "QUEUE_FULL"


class UnimplementedError(RunedError):
    """This version of the daemon does not know the method or cannot do what was asked."""

    reason = "UNIMPLEMENTED"


# States of the daemon


class BootstrappingError(RunedError):
    """The engine or the model is not there yet; it is being fetched or started."""

    reason = "BOOTSTRAPPING"


class NoCentroidSetError(RunedError):
    """There is no centroid set to route by; push one."""

    reason = "NO_CENTROID_SET"


class CentroidStoreError(RunedError):
    """A centroid set could not be written to the disk; the one before it stays."""

    reason = "CENTROIDS_NOT_STORED"


class ShuttingDownError(RunedError):
    """The daemon takes nothing new because it is about to exit."""

    reason = "SHUTTING_DOWN"


class DeadlineExceededError(RunedError):
    """The caller's time was over before the answer was there."""

    reason = "DEADLINE_EXCEEDED"


# Backend


class BackendError(RunedError):
    """The engine, `llama-server`, did not do its work."""

    reason = "BACKEND_ERROR"


class BackendUnavailableError(BackendError):
    """The engine crashed, cannot be started or is being restarted."""

    reason = "BACKEND_UNAVAILABLE"


class BackendFaultError(BackendError):
    """The engine answered something that is not an embedding, such as NaN or zeros."""

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
    """A file could not be downloaded in spite of all retries."""

    reason = "DOWNLOAD_FAILED"


class VerificationError(BootstrapError):
    """A downloaded file has not the size or the SHA-256 that the manifest gives."""

    reason = "VERIFICATION_FAILED"


class DiskSpaceError(BootstrapError):
    """There is not enough room on the disk for what has to be installed."""

    reason = "DISK_FULL"


class ArchiveError(BootstrapError):
    """An archive is broken, or holds a member that would leave the folder it is extracted to."""

    reason = "BAD_ARCHIVE"


# Lifecycle


class LifecycleError(RunedError):
    """The daemon could not be started, found or stopped."""

    reason = "LIFECYCLE"


class AlreadyRunningError(LifecycleError):
    """Another daemon serves this home; metadata holds `pid`."""

    reason = "ALREADY_RUNNING"


class ForeignPathError(LifecycleError):
    """Something that is not ours stands where a file, directory or socket of runed belongs; it is left untouched."""

    reason = "FOREIGN_PATH"


class DaemonStartError(LifecycleError):
    """The daemon ended, or did not listen in time, after it was started; the message ends with the tail of its log."""

    reason = "DAEMON_START_FAILED"


class DaemonUnavailableError(LifecycleError):
    """No daemon answers on the socket, and none was to be started or it went away again."""

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
    """Give the error that came over the wire.

    Args:
        reason: The name, as in `RunedError.reason`; a newer daemon may have names that are unknown here, and they are kept.
        message: The sentence for people.
        metadata: As in `RunedError.metadata`.
        retry_after: As in `RunedError.retry_after`.
        otherwise: The class of an error whose reason is unknown here.
    """
    cls = error_for_reason(reason)
    error = (otherwise if cls is RunedError else cls)(message, metadata=metadata, retry_after=retry_after)
    if reason:
        error.reason = reason
    return error


def error_for_reason(reason: str) -> type[RunedError]:
    """Give the class of a reason that came over the wire.

    Args:
        reason: The name, as in `RunedError.reason`.

    Returns:
        The class with that reason, or `RunedError` for a reason of a newer daemon.
    """
    pending = [RunedError]
    while pending:
        cls = pending.pop()
        if cls.reason == reason:
            return cls
        pending.extend(cls.__subclasses__())
    return RunedError
