/** The one error class of this package, and how an error of the daemon becomes one. */

import { fromBinary } from "@bufbuild/protobuf";
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { DurationSchema } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import { codeToString } from "@connectrpc/connect/protocol-connect";

const DOMAIN = "runed.v1";

/** The code of an error, as Connect and gRPC name it. */
export type ErrorCode =
  | "CANCELED"
  | "UNKNOWN"
  | "INVALID_ARGUMENT"
  | "DEADLINE_EXCEEDED"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "FAILED_PRECONDITION"
  | "ABORTED"
  | "OUT_OF_RANGE"
  | "UNIMPLEMENTED"
  | "INTERNAL"
  | "UNAVAILABLE"
  | "DATA_LOSS"
  | "UNAUTHENTICATED";

const CODES = {
  EMPTY_TEXT: "INVALID_ARGUMENT",
  INVALID_TEXT: "INVALID_ARGUMENT",
  TEXT_TOO_LONG: "INVALID_ARGUMENT",
  EMPTY_BATCH: "INVALID_ARGUMENT",
  BATCH_TOO_LARGE: "INVALID_ARGUMENT",
  BAD_DIMENSIONS: "INVALID_ARGUMENT",
  BAD_INSTRUCTION: "INVALID_ARGUMENT",
  UNKNOWN_MODEL: "NOT_FOUND",
  WRONG_MODEL_KIND: "INVALID_ARGUMENT",
  MODEL_NOT_INSTALLED: "FAILED_PRECONDITION",
  MODEL_TOO_LARGE: "FAILED_PRECONDITION",
  MODEL_BUSY: "FAILED_PRECONDITION",
  SPACE_CHANGED: "FAILED_PRECONDITION",
  BAD_CENTROIDS: "INVALID_ARGUMENT",
  CENTROIDS_NOT_STORED: "INTERNAL",
  BAD_SETTING: "INVALID_ARGUMENT",
  INVALID_REQUEST: "INVALID_ARGUMENT",
  MALFORMED_REQUEST: "INVALID_ARGUMENT",
  REQUEST_TOO_LARGE: "RESOURCE_EXHAUSTED",
  QUEUE_FULL: "RESOURCE_EXHAUSTED",
  BOOTSTRAPPING: "FAILED_PRECONDITION",
  NO_CENTROID_SET: "FAILED_PRECONDITION",
  FOREIGN_PATH: "FAILED_PRECONDITION",
  CLOSED: "FAILED_PRECONDITION",
  BACKEND_UNAVAILABLE: "UNAVAILABLE",
  SHUTTING_DOWN: "UNAVAILABLE",
  DAEMON_UNAVAILABLE: "UNAVAILABLE",
  DAEMON_START_FAILED: "UNAVAILABLE",
  KEPT_STOPPED: "UNAVAILABLE",
  DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
  CANCELED: "CANCELED",
  UNIMPLEMENTED: "UNIMPLEMENTED",
  BACKEND_FAULT: "INTERNAL",
  INTERNAL: "INTERNAL",
} as const satisfies Record<string, ErrorCode>;

/** The stable name of the kind of an error. A newer daemon may have more than these. */
export type Reason = keyof typeof CODES | (string & {});

/** The facts of an error besides its reason and its message. */
export interface ErrorDetails {
  /** The code; by default that of the reason. */
  code?: ErrorCode;
  /** Facts for programs. */
  metadata?: Readonly<Record<string, string>>;
  /** Milliseconds after which another try can help. */
  retryAfterMs?: number | undefined;
  /** The error that it was made from. */
  cause?: unknown;
}

/**
 * The error of every method of this package: what was wrong, which limit applies and what to do now.
 *
 * The message is for people and may change; `reason` and `metadata` are for programs. Neither ever holds a text of yours.
 */
export class RunedError extends Error {
  override readonly name = "RunedError";
  /** The code, as Connect and gRPC name it. */
  readonly code: ErrorCode;
  /** The stable name of the kind of error, such as "TEXT_TOO_LONG". */
  readonly reason: Reason;
  /** Facts for programs, such as `{ tokens: "600", limit: "512" }`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Milliseconds after which another try can help; undefined if it cannot. */
  readonly retryAfterMs: number | undefined;

  constructor(reason: Reason, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.reason = reason;
    this.code = details.code ?? (CODES as Partial<Record<string, ErrorCode>>)[reason] ?? "INTERNAL";
    this.metadata = details.metadata ?? {};
    this.retryAfterMs = details.retryAfterMs;
  }
}

/** A reason that this client knows. */
type KnownReason = keyof typeof CODES;

/** The reasons of errors that carry none, by their code. The other codes are INTERNAL. */
const REASONS: Partial<Record<ErrorCode, KnownReason>> = {
  CANCELED: "CANCELED",
  INVALID_ARGUMENT: "INVALID_REQUEST",
  RESOURCE_EXHAUSTED: "REQUEST_TOO_LARGE",
  UNAVAILABLE: "BACKEND_UNAVAILABLE",
  DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
  UNIMPLEMENTED: "UNIMPLEMENTED",
};

function reasonOfCode(code: ErrorCode, retryAfterMs: number | undefined): KnownReason {
  if (code === "RESOURCE_EXHAUSTED" && retryAfterMs !== undefined) {
    return "QUEUE_FULL";
  }
  return REASONS[code] ?? "INTERNAL";
}

/** Returns the reason that says what is done about an error: its own if this client knows it, otherwise that of its code. */
export function kindOf(error: RunedError): KnownReason {
  return Object.hasOwn(CODES, error.reason) ? (error.reason as KnownReason) : reasonOfCode(error.code, error.retryAfterMs);
}

/** Errors that `@connectrpc/connect` makes of an answer that breaks the contract's protocol. */
const FOREIGN = /^(HTTP \d+$|unsupported |invalid grpc-status|invalid end stream|parse binary|failed to parse)/;

/**
 * Turns the thrown value of a failed call into the error that callers get.
 *
 * @param thrown - What `@connectrpc/connect` threw.
 * @param socket - The socket that the call went to, for the message.
 */
export function translate(thrown: unknown, socket: string): RunedError {
  if (thrown instanceof RunedError) {
    return thrown;
  }
  const error = ConnectError.from(thrown);
  if (error.cause instanceof RunedError) {
    return error.cause;
  }
  if (FOREIGN.test(error.rawMessage)) {
    return new RunedError(
      "INTERNAL",
      `what listens on ${socket} does not answer as runed: ${error.rawMessage}; is it another program's socket?`,
      { cause: error },
    );
  }
  const code = codeToString(error.code).toUpperCase() as ErrorCode;
  const { reason, metadata, retryAfterMs } = readDetails(error);
  // An error of the daemon has the headers of its answer. An error without headers is the client's own.
  const answered = reason !== undefined || !error.metadata.keys().next().done;
  if (!answered && code !== "DEADLINE_EXCEEDED") {
    return new RunedError(
      "DAEMON_UNAVAILABLE",
      `the connection to ${socket} broke before the answer; the daemon ended or is overloaded, or it is another program's socket`,
      { cause: error },
    );
  }
  return new RunedError(reason ?? reasonOfCode(code, retryAfterMs), error.rawMessage || `the daemon answered ${code}`, {
    code,
    metadata,
    retryAfterMs,
  });
}

interface Details {
  reason?: string;
  metadata: Record<string, string>;
  retryAfterMs?: number;
}

function readDetails(error: ConnectError): Details {
  const result: Details = { metadata: {} };
  for (const detail of error.details) {
    if (!("type" in detail)) {
      continue;
    }
    try {
      if (detail.type === "google.rpc.ErrorInfo") {
        readErrorInfo(detail.value, result);
      } else if (detail.type === "google.rpc.RetryInfo") {
        readRetryInfo(detail.value, result);
      }
    } catch {
      // The error itself stands without a detail that cannot be read.
    }
  }
  return result;
}

// google.rpc's messages are read field by field: no package has them for protobuf-es, and of two messages three fields matter.

function readErrorInfo(bytes: Uint8Array, into: Details): void {
  const metadata: Record<string, string> = {};
  let reason = "";
  let domain = "";
  readFields(bytes, (field, reader) => {
    if (field === 1) {
      reason = reader.string();
    } else if (field === 2) {
      domain = reader.string();
    } else if (field === 3) {
      let [key, value] = ["", ""];
      readFields(reader.bytes(), (part, entry) => {
        if (part === 1) {
          key = entry.string();
        } else if (part === 2) {
          value = entry.string();
        } else {
          return false;
        }
        return true;
      });
      metadata[key] = value;
    } else {
      return false;
    }
    return true;
  });
  if (domain === DOMAIN && reason !== "") {
    into.reason = reason;
    into.metadata = metadata;
  }
}

function readRetryInfo(bytes: Uint8Array, into: Details): void {
  readFields(bytes, (field, reader) => {
    if (field !== 1) {
      return false;
    }
    const delay = fromBinary(DurationSchema, reader.bytes());
    into.retryAfterMs = Number(delay.seconds) * 1000 + delay.nanos / 1e6;
    return true;
  });
}

/** Reads a message field by field. `read` tells whether it consumed the field; the others are skipped. */
function readFields(bytes: Uint8Array, read: (field: number, reader: BinaryReader) => boolean): void {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [field, wireType] = reader.tag();
    if (!read(field, reader)) {
      reader.skip(wireType, field);
    }
  }
}
