/** How a call reaches the daemon: it waits out a bootstrap, tries again, and starts the daemon again. */

import type { CallOptions as RpcOptions } from "@connectrpc/connect";
import { type Health, type Info, readHealth, readInfo } from "./answers.js";
import { kindOf, RunedError, translate } from "./errors.js";
import type { InfoResponse } from "./gen/runed/v1/runed_pb.js";
import { checkNamed } from "./options.js";
import {
  BOOTSTRAP_FIRST_POLL_MS,
  BOOTSTRAP_LONGEST_POLL_MS,
  DRAIN_PATIENCE_MS,
  DRAIN_POLL_MS,
  LOST_PAUSE_MS,
  LOST_TRIES,
} from "./policy.js";
import type { Target } from "./target.js";
import type { Link, Rpc } from "./transport.js";
import { type Deadline, Patience } from "./waiting.js";

/** The behaviour of a call while the daemon downloads its engine or its model. */
export type DuringDownload = "wait" | "refuse";

/** The limits of a request. */
export type Limits = Pick<Info, "maxBatchSize" | "maxRequestBytes">;

/** The kinds of errors of a request that is larger than the daemon allows. */
const TOO_LARGE = new Set(["BATCH_TOO_LARGE", "REQUEST_TOO_LARGE"]);

/** The tries of one call so far. */
export class Tries {
  readonly deadline: Deadline;
  /** Whether to look for the daemon again even if none may be started. */
  readonly reconnect: boolean;
  readonly patience: Patience;
  lost = 0;
  drainedMs = 0;

  constructor(deadline: Deadline, { reconnect = false } = {}) {
    this.deadline = deadline;
    this.reconnect = reconnect;
    this.patience = new Patience(deadline);
  }

  /** Begins again, after a try that brought the work forward. */
  reset(): void {
    this.patience.reset();
    this.lost = 0;
    this.drainedMs = 0;
  }
}

/** The calls of one client. */
export class Calls {
  readonly #target: Target;
  readonly #link: Link;
  readonly #onProgress: ((health: Health) => void) | undefined;
  #limits: Limits | undefined;
  /** The models of this daemon whose start has been watched. */
  readonly #watched = new Set<string>();

  constructor(target: Target, link: Link, onProgress: ((health: Health) => void) | undefined) {
    this.#target = target;
    this.#link = link;
    this.#onProgress = onProgress;
  }

  /** Makes sure that the client was not closed. */
  checkOpen(): void {
    if (this.#link.closed) {
      throw new RunedError("CLOSED", "this client is closed; connect again");
    }
  }

  /**
   * Makes a call. Makes it again if the daemon is too busy for the moment, or if the daemon went away and may be started again.
   *
   * All calls that come here may be made twice: the same text has the same embedding.
   *
   * @param deadline - The end of the call.
   * @param call - Makes it.
   * @throws RunedError What the daemon answered. If the caller's signal was aborted, its reason.
   */
  async send<T>(deadline: Deadline, call: (rpc: Rpc, options: RpcOptions) => Promise<T>): Promise<T> {
    const tries = new Tries(deadline);
    for (;;) {
      try {
        return await this.sendOnce(deadline, call);
      } catch (error) {
        await this.recover(error, tries);
      }
    }
  }

  /**
   * Watches the start of a model. Then makes a call for it as `send` does, and waits out a bootstrap that is in its way.
   *
   * @param model - Its name; "" is the default one. Undefined if only the daemon knows which model the call needs.
   */
  async sendWhenReady<T>(
    deadline: Deadline,
    model: string | undefined,
    call: (rpc: Rpc, options: RpcOptions) => Promise<T>,
    duringDownload: DuringDownload = "wait",
  ): Promise<T> {
    if (model !== undefined) {
      await this.#watchStart(deadline, model, duringDownload);
    }
    for (;;) {
      try {
        return await this.send(deadline, call);
      } catch (error) {
        if (!(error instanceof RunedError && error.reason === "BOOTSTRAPPING")) {
          throw error;
        }
        await this.waitOutBootstrap(deadline, model ?? "", duringDownload);
      }
    }
  }

  /** Makes a call once, as soon as there is a place for it; throws as `send`. */
  async sendOnce<T>(deadline: Deadline, call: (rpc: Rpc, options: RpcOptions) => Promise<T>): Promise<T> {
    return await this.#link.places.hold(deadline, async () => await this.#make(deadline, this.#link.rpc, call));
  }

  /** Makes a call that lasts, beside the others, once; throws as `send`. */
  async converse<T>(deadline: Deadline, call: (rpc: Rpc, options: RpcOptions) => Promise<T>): Promise<T> {
    return await this.#make(deadline, this.#link.streams, call);
  }

  async #make<T>(deadline: Deadline, rpc: Rpc, call: (rpc: Rpc, options: RpcOptions) => Promise<T>): Promise<T> {
    this.checkOpen();
    const remaining = deadline.remaining();
    try {
      return await call(rpc, {
        ...(deadline.signal && { signal: deadline.signal }),
        // A header holds it, in whole milliseconds.
        ...(remaining !== undefined && { timeoutMs: Math.ceil(remaining) }),
      });
    } catch (thrown) {
      throw this.explain(thrown, deadline);
    }
  }

  /** Returns the error that the caller gets for what a call threw. */
  explain(thrown: unknown, deadline: Deadline): unknown {
    if (deadline.signal?.aborted) {
      return deadline.signal.reason;
    }
    if (this.#link.closed) {
      return new RunedError("CLOSED", "the client was closed before the answer");
    }
    const error = translate(thrown, this.#target.socket);
    // Only the deadline knows the time of the whole call. The error knows the time of the last try.
    return error.reason === "DEADLINE_EXCEEDED" && deadline.timeoutMs !== undefined ? deadline.exceeded() : error;
  }

  /**
   * Prepares another try.
   *
   * @param error - Why the last try failed.
   * @param tries - What has been tried.
   * @throws `error` if another try would be of no use.
   */
  async recover(error: unknown, tries: Tries): Promise<void> {
    if (!(error instanceof RunedError)) {
      throw error;
    }
    switch (kindOf(error)) {
      case "QUEUE_FULL":
      case "BACKEND_UNAVAILABLE":
        await tries.deadline.sleep(tries.patience.pause(error));
        return;
      case "SHUTTING_DOWN":
        if (!this.#mayReconnect(tries) || tries.drainedMs >= DRAIN_PATIENCE_MS) {
          throw error;
        }
        tries.drainedMs += DRAIN_POLL_MS;
        return await this.#findDaemon(tries, DRAIN_POLL_MS);
      case "DAEMON_UNAVAILABLE":
        if (!this.#mayReconnect(tries) || tries.lost === LOST_TRIES) {
          throw error;
        }
        tries.lost += 1;
        return await this.#findDaemon(tries, LOST_PAUSE_MS);
      case "DEADLINE_EXCEEDED":
        throw tries.patience.lastRefusal ?? error; // a refusal says more than that the time was over
      default:
        throw error;
    }
  }

  #mayReconnect(tries: Tries): boolean {
    return this.#target.home !== undefined || tries.reconnect;
  }

  /** Waits a moment, and makes sure that a daemon listens. */
  async #findDaemon(tries: Tries, pauseMs: number): Promise<void> {
    await tries.deadline.sleep(pauseMs);
    this.#limits = undefined; // the next daemon may have others
    this.#watched.clear();
    await this.#target.ensure(tries.deadline);
  }

  /** Reports the progress of a model that starts. The daemon would let the first call for it wait without telling any. */
  async #watchStart(deadline: Deadline, model: string, duringDownload: DuringDownload): Promise<void> {
    if (this.#onProgress !== undefined && !this.#watched.has(model)) {
      this.#watched.add(model);
      await this.waitOutBootstrap(deadline, model, duringDownload, false);
    }
  }

  /**
   * Watches Health until the daemon no longer loads the model, and reports what changes.
   *
   * @param deadline - The end of the call.
   * @param model - The name of the model; "" means the default one.
   * @param duringDownload - What to do while something is downloaded.
   * @param refused - Whether a bootstrap has refused a call. Otherwise a daemon that does not load is left at once.
   * @throws RunedError BACKEND_UNAVAILABLE: The bootstrap failed. BOOTSTRAPPING: The daemon downloads, and `duringDownload` is
   * "refuse". DEADLINE_EXCEEDED: The time was over first.
   */
  async waitOutBootstrap(
    deadline: Deadline,
    model: string,
    duringDownload: DuringDownload = "wait",
    refused = true,
  ): Promise<void> {
    let pause = BOOTSTRAP_FIRST_POLL_MS;
    let told = "";
    let message = "";
    try {
      for (;;) {
        const health = await this.health(deadline, model);
        message = health.message;
        if (!refused && told === "" && health.status !== "LOADING") {
          return;
        }
        const news = JSON.stringify([health.status, health.phase, health.bytesDone, health.bytesTotal, message]);
        if (news !== told) {
          this.#onProgress?.(health);
        }
        told = news;
        if (health.status === "DEGRADED") {
          throw new RunedError(
            "BACKEND_UNAVAILABLE",
            message || "the daemon could not install or start its engine; see its log",
          );
        }
        if (duringDownload === "refuse" && isDownload(health)) {
          throw downloading(health);
        }
        await deadline.sleep(pause);
        if (health.status !== "LOADING") {
          return;
        }
        pause = Math.min(pause * 1.25, BOOTSTRAP_LONGEST_POLL_MS);
      }
    } catch (error) {
      if ((refused || told !== "") && error instanceof RunedError && error.reason === "DEADLINE_EXCEEDED") {
        throw new RunedError("DEADLINE_EXCEEDED", `${error.message}: engine and model are not ready yet: ${message}`);
      }
      throw error;
    }
  }

  /** Describes the daemon and a model as soon as the daemon knows the model. */
  async info(deadline: Deadline, model: string, duringDownload: DuringDownload): Promise<Info> {
    for (;;) {
      const response = await this.#ask(deadline, model, duringDownload);
      if (response.vectorDim > 0) {
        checkNamed(model, response.model);
        return readInfo(response);
      }
      await this.waitOutBootstrap(deadline, model, duringDownload);
    }
  }

  /** Tells the present state of the daemon and of a model. */
  async health(deadline: Deadline, model: string): Promise<Health> {
    const response = await this.send(deadline, (rpc, options) => rpc.health({ model }, options));
    checkNamed(model, response.model);
    return readHealth(response);
  }

  /** Asks the daemon for the limits of a request for a model, as in `sendWhenReady`. */
  async askLimits(deadline: Deadline, model: string | undefined): Promise<Limits> {
    // Not `info`: the limits are known before the model is.
    this.#limits = readInfo(await this.#ask(deadline, model, "wait"));
    return this.#limits;
  }

  async #ask(deadline: Deadline, model: string | undefined, duringDownload: DuringDownload): Promise<InfoResponse> {
    const ask = (rpc: Rpc, options: RpcOptions) => rpc.info({ model: model ?? "" }, options);
    return await this.sendWhenReady(deadline, model, ask, duringDownload);
  }

  /**
   * Makes a call within the limits of a request for a model, as in `sendWhenReady`. It asks the daemon for them once.
   *
   * If a request is too large although the limits were kept, it asks again: another daemon with smaller limits may have taken the
   * place of the first.
   */
  async withinLimits<T>(deadline: Deadline, model: string | undefined, call: (limits: Limits) => Promise<T>): Promise<T> {
    const kept = this.#limits;
    if (kept === undefined) {
      return await call(await this.askLimits(deadline, model));
    }
    try {
      return await call(kept);
    } catch (error) {
      if (!(error instanceof RunedError && TOO_LARGE.has(kindOf(error)))) {
        throw error;
      }
      const now = await this.askLimits(deadline, model);
      if (now.maxBatchSize === kept.maxBatchSize && now.maxRequestBytes === kept.maxRequestBytes) {
        throw error;
      }
      return await call(now);
    }
  }
}

/**
 * Tells whether the daemon downloads its engine or its model. Other work of these phases, such as computing a hash, has no bytes
 * to count.
 */
function isDownload({ status, phase, bytesTotal }: Health): boolean {
  return status === "LOADING" && (phase === "FETCHING_LLAMA_SERVER" || phase === "FETCHING_MODEL") && bytesTotal > 0;
}

function downloading({ message, bytesDone, bytesTotal }: Health): RunedError {
  return new RunedError(
    "BOOTSTRAPPING",
    `engine and model are not there yet: ${message}: ${bytesDone} of ${bytesTotal} bytes are done; ` +
      "wait with waitUntilReady, or ask again later",
    { metadata: { bytes_done: String(bytesDone), bytes_total: String(bytesTotal) } },
  );
}
