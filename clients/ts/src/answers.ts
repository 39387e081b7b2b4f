/** The daemon's messages, turned into the plain data that callers get. */

import type { Message } from "@bufbuild/protobuf";
import { RunedError } from "./errors.js";
import {
  type EmbedResponse,
  type HealthResponse,
  HealthResponse_Phase,
  HealthResponse_Status,
  type InfoResponse,
} from "./gen/runed/v1/runed_pb.js";
import { FALLBACK_BYTES, FALLBACK_TEXTS } from "./policy.js";

/** The fields of a message, with every number as `number`. The largest ones count bytes, and fit by far. */
export type Plain<T> = T extends bigint
  ? number
  : T extends Message
    ? { readonly [F in keyof T as F extends `$${string}` ? never : F]: Plain<T[F]> }
    : T;

/** A description of the daemon and its model. */
export type Info = Plain<InfoResponse>;

/** The state of the daemon. UNSPECIFIED is a state that only a newer daemon knows. */
export type Status = keyof typeof HealthResponse_Status;

/** A part of the daemon's start. UNSPECIFIED is a part that only a newer daemon knows. */
export type Phase = keyof typeof HealthResponse_Phase;

/** The state of the daemon at this moment. */
export type Health = Omit<Plain<HealthResponse>, "status" | "phase"> & {
  /** The state of the daemon. */
  readonly status: Status;
  /** The part of the start that goes on; undefined unless `status` is LOADING. */
  readonly phase: Phase | undefined;
};

/** The vector of one text, with facts about it. */
export interface Embedding {
  /** The values; their L2 norm is 1. */
  readonly vector: Float32Array;
  /** The number of tokens that the model read: those of the text, those of its prompt, and special ones. */
  readonly tokenCount: number;
  /** The number of tokens before anything was cut off. */
  readonly totalTokenCount: number;
  /** Whether something was cut off, which `truncate` allows. */
  readonly truncated: boolean;
  /** The name of the space that the vector lies in. Keep it beside stored vectors, and compare only vectors of the same one. */
  readonly fingerprint: string;
  /** The words that were put in front of the text, such as the model's instruction for queries; may be empty. */
  readonly prompt: string;
  /** Whether the vector came from the cache, or from the same text in flight. */
  readonly cached: boolean;
  /** The nearest centroid of the daemon's set; undefined unless `withRoute` asked for it. */
  readonly clusterId: number | undefined;
  /** The set that `clusterId` belongs to; empty without one. */
  readonly centroidSetVersion: string;
  /** The name of the model; empty if the daemon is of a version with one model. */
  readonly model: string;
}

/** The outcome of one text of several: its embedding, or the error that says why there is none. */
export type Outcome = Embedding | RunedError;

/** Makes sure that all vectors of one result lie in the same space, though they come in several answers. */
export class SpaceGuard {
  #first: string | undefined;

  /**
   * Compares the space of an answer with that of the answers before.
   *
   * @throws RunedError INTERNAL: It is another one. The daemon was restarted with another model or engine meanwhile.
   */
  check(fingerprint: string): void {
    this.#first ??= fingerprint;
    if (fingerprint !== this.#first) {
      throw new RunedError(
        "INTERNAL",
        `the daemon changed its model or engine on the way: the fingerprint was "${this.#first}", now it is ` +
          `"${fingerprint}"; their vectors cannot be compared, so embed all of the texts again`,
        { metadata: { before: this.#first, now: fingerprint } },
      );
    }
  }
}

/**
 * Reads the outcome of one text of several.
 *
 * @param item - The message about the text.
 * @param answer - The message that it is part of.
 * @param index - The place of the text in the caller's batch, if it has one.
 * @throws RunedError BACKEND_FAULT: There is neither a vector nor an error.
 */
export function readOutcome(
  item: EmbedResponse | undefined,
  answer: { fingerprint: string; prompt: string; model: string },
  index?: number,
): Outcome {
  if (item === undefined) {
    throw noVector();
  }
  if (item.error !== undefined) {
    // The daemon tells the place in one request, which the caller does not know.
    const { index: _, ...metadata } = item.error.metadata;
    if (index !== undefined) {
      metadata.index = String(index);
    }
    return new RunedError(item.error.reason, item.error.message, { metadata });
  }
  const { tokenCount, totalTokenCount, truncated, cached, centroidSetVersion } = item;
  return {
    vector: readVector(item),
    tokenCount,
    totalTokenCount,
    truncated,
    fingerprint: answer.fingerprint,
    prompt: answer.prompt,
    cached,
    clusterId: centroidSetVersion === "" ? undefined : item.clusterId,
    centroidSetVersion,
    model: answer.model,
  };
}

/**
 * Reads the vector of a text.
 *
 * @throws RunedError BACKEND_FAULT: There is none.
 */
export function readVector(item: EmbedResponse): Float32Array {
  if (item.vector.length === 0) {
    throw noVector();
  }
  return new Float32Array(item.vector);
}

/** Describes an answer that lacks vectors. */
export function noVector(): RunedError {
  return new RunedError("BACKEND_FAULT", "the daemon answered other vectors than were asked for; send the texts again");
}

/** Reads an answer to Info. */
export function readInfo(response: InfoResponse): Info {
  const info = plain(response);
  return {
    ...info,
    maxBatchSize: info.maxBatchSize || FALLBACK_TEXTS,
    maxRequestBytes: info.maxRequestBytes || FALLBACK_BYTES,
  };
}

/** Reads an answer to Health. */
export function readHealth(response: HealthResponse): Health {
  // A newer daemon may send numbers that have no name here.
  const status: Status | undefined = HealthResponse_Status[response.status] as Status | undefined;
  const phase: Phase | undefined = HealthResponse_Phase[response.phase] as Phase | undefined;
  return {
    ...plain(response),
    status: status ?? "UNSPECIFIED",
    phase: status === "LOADING" ? (phase ?? "UNSPECIFIED") : undefined,
  };
}

function plain<T>(value: T): Plain<T>;
function plain(value: unknown): unknown {
  if (typeof value === "bigint") {
    return Number(value);
  }
  if (typeof value !== "object" || value === null) {
    return value;
  }
  if (Array.isArray(value)) {
    return value.map(plain);
  }
  return Object.fromEntries(
    Object.entries(value)
      .filter(([name]) => !name.startsWith("$"))
      .map(([name, field]) => [name, plain(field)]),
  );
}
