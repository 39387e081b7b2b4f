"""Errors as the OpenAI API writes them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from runed import errors
from runed.api.web.errors import retry_headers, status_of

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_CODES: dict[type[errors.RunedError], str] = {errors.UnknownModelError: "model_not_found"}
"""Codes of OpenAI's own that programs compare with, instead of ours."""

_PARAMS: dict[type[errors.RunedError], str] = {
    errors.EmptyTextError: "input",
    errors.InvalidTextError: "input",
    errors.TextTooLongError: "input",
    errors.EmptyBatchError: "input",
    errors.BatchTooLargeError: "input",
    errors.BadDimensionsError: "dimensions",
    errors.BadInstructionError: "instruction",
    errors.UnknownModelError: "model",
    errors.WrongModelKindError: "model",
    errors.ModelNotInstalledError: "model",
}


def error_response(
    error: errors.RunedError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response that tells of an error.

    Args:
        error: The error; the `field` of its metadata, if there is one, is the parameter at fault.
        status: The HTTP status, if it differs from that of this kind of error.
        headers: Further headers.
    """
    status = status or status_of(error)
    body = {
        "error": {
            "message": error.message,
            "type": _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error"),  # noqa: PLR2004 # HTTP's
            "param": error.metadata.get("field") or _PARAMS.get(type(error)),
            "code": _CODES.get(type(error), error.reason),
        }
    }
    return Response(
        msgspec.json.encode(body), status, {**retry_headers(error, status), **(headers or {})}, media_type="application/json"
    )
