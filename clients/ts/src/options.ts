/** The options of calls, and their checks before anything is sent. */

import { RunedError } from "./errors.js";
import { Lane as LaneValue, Role as RoleValue, Truncate as TruncateValue } from "./gen/runed/v1/runed_pb.js";

/** The purpose of a text. */
export type Role = "query" | "document";

/** How to deal with a text that is longer than the model reads. */
export type Truncate = "none" | "end" | "start";

/** The queues of the daemon. */
export type Lane = "interactive" | "bulk";

/** The options of every call. */
export interface CallOptions {
  /** Milliseconds that the call may take, waiting included, at most a day; by default the client's own limit. */
  timeoutMs?: number | undefined;
  /** Ends the call early. It then rejects with the signal's reason, as `fetch` does. */
  signal?: AbortSignal | undefined;
}

/** The option that chooses a model. */
export interface ModelOptions {
  /** The model: its name or an alias, in letters of any case. By default the daemon's default model. */
  model?: string | undefined;
}

/** The options that decide which model reads a text, and what is put in front of it. */
export interface PromptOptions extends ModelOptions {
  /**
   * The purpose of the text. Without one, the text is embedded as it is. The daemon puts the model's own prompt for it in front.
   * Never write one yourself.
   */
  role?: Role | undefined;
  /** The purpose of a query in one English sentence; only with role "query". By default the model's own instruction. */
  instruction?: string | undefined;
}

/** The options of all methods that embed. */
export interface EmbedOptions extends CallOptions, PromptOptions {
  /** The number of values of a vector, from `Info.minDimensions` on; by default all, `Info.vectorDim`. */
  dimensions?: number | undefined;
  /** "none", the default, refuses a text that is longer than the model reads. "end" and "start" cut that part of the text off. */
  truncate?: Truncate | undefined;
  /** "interactive" is served first, "bulk" is for jobs that take their time. By default the daemon goes by the request's size. */
  lane?: Lane | undefined;
}

/** The options of `Client.embedItems`. */
export interface ItemOptions extends EmbedOptions {
  /**
   * Whether to tell the nearest centroid of each vector, too. It is that of the whole vector, whatever `dimensions` says. The call
   * fails with NO_CENTROID_SET if the daemon has no set.
   */
  withRoute?: boolean | undefined;
}

const ROLES: Record<Role, RoleValue> = { query: RoleValue.QUERY, document: RoleValue.DOCUMENT };
const TRUNCATES: Record<Truncate, TruncateValue> = {
  none: TruncateValue.UNSPECIFIED,
  end: TruncateValue.END,
  start: TruncateValue.START,
};
const LANES: Record<Lane, LaneValue> = { interactive: LaneValue.INTERACTIVE, bulk: LaneValue.BULK };

/** The largest number that the field of the request holds. The daemon knows the limits of the model. */
const MAX_DIMENSIONS = 2 ** 32 - 1;

/**
 * Returns the name of the model of a call; "" means the default one.
 *
 * @throws RunedError UNKNOWN_MODEL: No model can have this name.
 */
export function modelName({ model = "" }: ModelOptions): string {
  if (typeof model !== "string") {
    throw new TypeError(`model is of type ${typeof model}, but must be a string`);
  }
  if (!model.isWellFormed()) {
    throw new RunedError("UNKNOWN_MODEL", "model is not valid Unicode: it has half of a surrogate pair");
  }
  return model;
}

/**
 * Returns the fields of a request that decide which model reads a text, and what is put in front of it.
 *
 * @throws RunedError INVALID_REQUEST, UNKNOWN_MODEL or BAD_INSTRUCTION: An option cannot be used.
 */
export function promptFields(options: PromptOptions) {
  const { role, instruction = "" } = options;
  const model = modelName(options);
  if (typeof instruction !== "string") {
    throw new TypeError(`instruction is of type ${typeof instruction}, but must be a string`);
  }
  if (instruction !== "" && role !== "query") {
    throw new RunedError("BAD_INSTRUCTION", 'an instruction is for queries; give role: "query" too, or no instruction');
  }
  if (!instruction.isWellFormed()) {
    throw new RunedError("BAD_INSTRUCTION", "instruction is not valid Unicode: it has half of a surrogate pair");
  }
  return { role: choose("role", role, ROLES) ?? RoleValue.UNSPECIFIED, instruction, model };
}

/**
 * Returns the fields of a request that embeds. An option with its default takes no room there.
 *
 * @throws RunedError INVALID_REQUEST, UNKNOWN_MODEL, BAD_INSTRUCTION or BAD_DIMENSIONS: An option cannot be used.
 */
export function embedFields(options: EmbedOptions) {
  const { dimensions } = options;
  if (dimensions !== undefined && !(Number.isInteger(dimensions) && dimensions >= 1 && dimensions <= MAX_DIMENSIONS)) {
    throw new RunedError(
      "BAD_DIMENSIONS",
      `dimensions is ${dimensions}; give a whole number from Info.minDimensions to Info.vectorDim, or none for all`,
      { metadata: { dimensions: String(dimensions) } },
    );
  }
  return {
    ...promptFields(options),
    dimensions: dimensions ?? 0,
    ...queueFields(options),
  };
}

/**
 * Returns the fields of a request that choose the queue and how to deal with a text that is too long.
 *
 * @throws RunedError INVALID_REQUEST: An option cannot be used.
 */
export function queueFields({ truncate, lane }: Pick<EmbedOptions, "truncate" | "lane">) {
  return {
    truncate: choose("truncate", truncate, TRUNCATES) ?? TruncateValue.UNSPECIFIED,
    lane: choose("lane", lane, LANES) ?? LaneValue.UNSPECIFIED,
  };
}

/**
 * Makes sure that the daemon knew the options of the call that it has answered.
 *
 * A daemon from before there were options ignores them, and answers another vector than was asked for. Its answers have no
 * fingerprint. Those of a version with one model name no model.
 *
 * @throws RunedError UNIMPLEMENTED: The answer must not be used.
 */
export function checkKnown(options: EmbedOptions, { fingerprint, model }: { fingerprint: string; model: string }): void {
  const { role, instruction, dimensions, truncate = "none" } = options;
  const asked = Object.entries({ role, instruction, dimensions, truncate: truncate !== "none" })
    .filter(([, value]) => Boolean(value))
    .map(([name]) => name);
  if (asked.length > 0 && fingerprint === "") {
    throw tooOld(`does not know ${asked.join(" and ")}`);
  }
  checkNamed(options.model, model);
}

/**
 * Makes sure that the daemon knew the name of the model. One of a version with one model ignores it.
 *
 * @param asked - The name that the caller gave.
 * @param answering - The name that the answer tells.
 * @throws RunedError UNIMPLEMENTED: The answer is of another model.
 */
export function checkNamed(asked: string | undefined, answering: string): void {
  if (asked && answering === "") {
    throw tooOld("has one model and knows no names");
  }
}

/** Describes a daemon of an earlier version that lacks something. */
export function tooOld(lack: string): RunedError {
  return new RunedError(
    "UNIMPLEMENTED",
    `the daemon is too old: it ${lack}; stop it with \`runed stop\`, so that a newer one is started`,
  );
}

function choose<N extends string, V>(option: string, name: N | undefined, values: Record<N, V>): V | undefined {
  if (name === undefined) {
    return undefined;
  }
  if (!Object.hasOwn(values, name)) {
    const accepted = Object.keys(values).map((key) => `"${key}"`);
    throw new RunedError("INVALID_REQUEST", `${option} is none of ${accepted.join(", ")}`, { metadata: { field: option } });
  }
  return values[name];
}
