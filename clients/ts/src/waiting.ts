/** How long a call may take, and when a call that was refused for the moment is tried again. */

import { setMaxListeners } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { RunedError } from "./errors.js";
import { RETRY_GROWTH, RETRY_LONGEST_MS, RETRY_PATIENCE_MS, RETRY_SHORTEST_MS } from "./policy.js";

/** The longest `timeoutMs`: a day. Beyond some days, timers of Node.js and the header of gRPC overflow. */
export const MAX_TIMEOUT_MS = 86_400_000;

/** The end of a call: by its time, which counts from the construction, or by its caller. */
export class Deadline {
  readonly timeoutMs: number | undefined;
  readonly signal: AbortSignal | undefined;
  readonly #what: string;
  #end: number | undefined;

  /**
   * @param timeoutMs - Milliseconds from now on, waiting included; undefined and Infinity mean no limit.
   * @param signal - Ends the call early.
   * @param what - What did not happen in that time, for the error.
   * @throws RunedError INVALID_REQUEST: `timeoutMs` cannot be used.
   */
  constructor(timeoutMs: number | undefined, signal: AbortSignal | undefined, what = "the call did not succeed") {
    if (timeoutMs !== undefined && timeoutMs !== Infinity && !(timeoutMs > 0 && timeoutMs <= MAX_TIMEOUT_MS)) {
      throw new RunedError("INVALID_REQUEST", `timeoutMs is ${timeoutMs}; give more than 0 and at most ${MAX_TIMEOUT_MS}`);
    }
    this.timeoutMs = timeoutMs === Infinity ? undefined : timeoutMs;
    this.signal = signal;
    this.#what = what;
    if (signal !== undefined) {
      // Many calls may share a signal; Node.js would warn of a leak from the eleventh on.
      setMaxListeners(0, signal);
    }
    this.restart();
  }

  /** Begins again, with the whole time. */
  restart(): void {
    this.#end = this.timeoutMs === undefined ? undefined : performance.now() + this.timeoutMs;
  }

  /** Returns the milliseconds that remain, negative where the time is over; undefined means no limit. */
  left(): number | undefined {
    return this.#end === undefined ? undefined : this.#end - performance.now();
  }

  /**
   * Returns the milliseconds that remain; undefined means no limit.
   *
   * @throws RunedError DEADLINE_EXCEEDED: The time is over. If `signal` was aborted, its reason.
   */
  remaining(): number | undefined {
    this.signal?.throwIfAborted();
    const left = this.left();
    if (left !== undefined && left <= 0) {
      throw this.exceeded();
    }
    return left;
  }

  /** Describes the call whose time is over. */
  exceeded(): RunedError {
    return new RunedError(
      "DEADLINE_EXCEEDED",
      `${this.#what} within ${this.timeoutMs} ms; give it more time, or send less at once`,
    );
  }

  /** Lets time pass, at most what remains; throws as `remaining`. */
  async sleep(ms: number): Promise<void> {
    const remaining = this.remaining();
    try {
      await delay(remaining === undefined ? ms : Math.min(ms, remaining), undefined, { signal: this.signal });
    } catch (error) {
      this.signal?.throwIfAborted();
      throw error;
    }
  }
}

/**
 * The pauses of one call between its tries.
 *
 * The daemon tells when another try can help. Each caller waits half to one and a half times as long, so that callers that were
 * refused together do not come back together. The pauses grow.
 */
export class Patience {
  readonly #deadline: Deadline;
  #began = 0;
  #refusals = 0;
  #last: RunedError | undefined;

  /** @param deadline - The end of the call. Without a limit it is tried for `RETRY_PATIENCE_MS` from the first refusal on. */
  constructor(deadline: Deadline) {
    this.#deadline = deadline;
  }

  /**
   * Returns the milliseconds to wait before the next try.
   *
   * @param error - Why the last try was refused.
   * @throws RunedError `error`, with the time of the tries in its message: Another try is of no use or comes too late.
   */
  pause(error: RunedError): number {
    const now = performance.now();
    if (this.#refusals === 0) {
      this.#began = now;
    }
    this.#refusals += 1;
    this.#last = error;
    if (error.retryAfterMs === undefined) {
      throw this.#givenUp(error, this.#refusals);
    }
    const told = Math.max(error.retryAfterMs, RETRY_SHORTEST_MS);
    const grown = Math.min(told * RETRY_GROWTH ** (this.#refusals - 1), Math.max(told, RETRY_LONGEST_MS));
    const ms = grown * (0.5 + Math.random());
    if (ms >= (this.#deadline.left() ?? this.#began + RETRY_PATIENCE_MS - now)) {
      throw this.#givenUp(error, this.#refusals);
    }
    return ms;
  }

  /** The last refusal, for a call whose time ended in the middle of another try; undefined without a refusal. */
  get lastRefusal(): RunedError | undefined {
    return this.#last && this.#givenUp(this.#last, this.#refusals + 1);
  }

  /** Begins again, after a try that brought the work forward. */
  reset(): void {
    this.#refusals = 0;
    this.#last = undefined;
  }

  #givenUp(error: RunedError, tries: number): RunedError {
    if (tries === 1) {
      return error;
    }
    const { reason, code, metadata, retryAfterMs } = error;
    const tried = `tried ${tries} times in ${((performance.now() - this.#began) / 1000).toFixed(1)} s`;
    return new RunedError(reason, `${error.message} (${tried})`, { code, metadata, retryAfterMs });
  }
}
