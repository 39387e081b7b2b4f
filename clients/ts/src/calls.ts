/** What a call to the daemon takes besides sending it: waiting out a bootstrap, trying again, starting the daemon again. */

import type { CallOptions as RpcOptions } from "@connectrpc/connect";
import { type Health, type Info, readHealth, readInfo } from "./answers.js";
import { RunedError, translate } from "./errors.js";
import type { Target } from "./target.js";
import type { Link, Rpc } from "./transport.js";
import { type Deadline, Patience } from "./waiting.js";

/** Milliseconds between two looks at Health during a bootstrap, at first and later. */
const POLL_FIRST_MS = 100;
const POLL_MOST_MS = 250;

/** A dying daemon closes its connections a moment before its listening socket, so that it may seem to live on. */
const MAX_RETRIES = 3;
const RETRY_PAUSE_MS = 50;

/** Milliseconds to wait for a draining daemon to make room for its successor. */
const DRAIN_POLL_MS = 200;
const MAX_DRAIN_MS = 30_000;

/** The reasons that another try may help against. */
const PASSING = new Set<string>(["QUEUE_FULL", "BACKEND_UNAVAILABLE", "SHUTTING_DOWN", "DAEMON_UNAVAILABLE"]);

/** Whether another try, now or after the bootstrap, may help against an error. */
export function mayPass(error: RunedError): boolean {
  return PASSING.has(error.reason) || error.reason === "BOOTSTRAPPING";
}

/** What a call has tried so far. */
export class Tries {
  readonly deadline: Deadline;
  /** Whether to look for a daemon that broke a connection even if none may be started. */
  readonly reconnect: boolean;
  readonly patience: Patience;
  restarted = false;
  retries = 0;
  drainedMs = 0;

  constructor(deadline: Deadline, { reconnect = false } = {}) {
    this.deadline = deadline;
    this.reconnect = reconnect;
    this.patience = new Patience(deadline);
  }

  /** Begins again, after a try that brought the work forward. */
  reset(): void {
    this.patience.reset();
    this.restarted = false;
    this.retries = 0;
    this.drainedMs = 0;
  }
}

/** The calls of one client. */
export class Calls {
  readonly #target: Target;
  readonly #link: Link;
  readonly #onProgress: ((health: Health) => void) | undefined;
  #limits: Info | undefined;

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
   * Makes a call, again if the daemon is too busy for the moment, once more if it went away and may be started again.
   *
   * All calls that come here may be repeated: an embedding that is computed twice is the same embedding.
   *
   * @param deadline - The end of the call.
   * @param call - Makes it.
   * @throws RunedError What the daemon answered. What the caller's signal was aborted with.
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

  /** Makes a call as `send` does, and waits out a bootstrap that is in its way. */
  async sendWhenReady<T>(deadline: Deadline, call: (rpc: Rpc, options: RpcOptions) => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await this.send(deadline, call);
      } catch (error) {
        if (!(error instanceof RunedError && error.reason === "BOOTSTRAPPING")) {
          throw error;
        }
        await this.waitOutBootstrap(deadline);
      }
    }
  }

  /** Makes a call once; throws as `send`. */
  async sendOnce<T>(deadline: Deadline, call: (rpc: Rpc, options: RpcOptions) => Promise<T>): Promise<T> {
    this.checkOpen();
    const remaining = deadline.remaining();
    try {
      return await call(this.#link.rpc, {
        ...(deadline.signal && { signal: deadline.signal }),
        // A header holds it, in whole milliseconds.
        ...(remaining !== undefined && { timeoutMs: Math.ceil(remaining) }),
      });
    } catch (thrown) {
      throw this.explain(thrown, deadline);
    }
  }

  /** Gives the error that a caller gets for what a call threw. */
  explain(thrown: unknown, deadline: Deadline): unknown {
    if (deadline.signal?.aborted) {
      return deadline.signal.reason;
    }
    if (this.#link.closed) {
      return new RunedError("CLOSED", "the client was closed before the answer");
    }
    const error = translate(thrown, this.#target.socket);
    // Only the deadline knows the time of the whole call; whoever noticed its end knows what was left of it.
    return error.reason === "DEADLINE_EXCEEDED" && deadline.timeoutMs !== undefined ? deadline.exceeded() : error;
  }

  /**
   * Does what is to be done before another try.
   *
   * @param error - Why the last try failed.
   * @param tries - What has been tried.
   * @throws `error` if another try would be of no use.
   */
  async recover(error: unknown, tries: Tries): Promise<void> {
    const { deadline } = tries;
    if (!(error instanceof RunedError && PASSING.has(error.reason))) {
      throw error;
    }
    if (error.reason === "QUEUE_FULL" || error.reason === "BACKEND_UNAVAILABLE") {
      await deadline.sleep(tries.patience.pause(error));
      return;
    }
    if (this.#target.home === undefined && !tries.reconnect) {
      throw error;
    }
    if (error.reason === "SHUTTING_DOWN") {
      if (tries.drainedMs >= MAX_DRAIN_MS) {
        throw error;
      }
      await deadline.sleep(DRAIN_POLL_MS);
      tries.drainedMs += DRAIN_POLL_MS;
    } else {
      if (tries.restarted || tries.retries === MAX_RETRIES) {
        throw error;
      }
      await deadline.sleep(RETRY_PAUSE_MS);
      tries.retries += 1;
    }
    this.#limits = undefined;
    tries.restarted = await this.#target.ensure(deadline);
  }

  /** Watches Health until the daemon no longer loads, and reports what changes. */
  async waitOutBootstrap(deadline: Deadline): Promise<void> {
    let pause = POLL_FIRST_MS;
    let told = "";
    let message = "";
    try {
      for (;;) {
        const health = await this.health(deadline);
        message = health.message;
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
        await deadline.sleep(pause);
        if (health.status !== "LOADING") {
          return;
        }
        pause = Math.min(pause * 1.25, POLL_MOST_MS);
      }
    } catch (error) {
      if (error instanceof RunedError && error.reason === "DEADLINE_EXCEEDED") {
        throw new RunedError("DEADLINE_EXCEEDED", `${error.message}: engine and model are not ready yet: ${message}`);
      }
      throw error;
    }
  }

  /** Asks what the daemon and its model are. */
  async info(deadline: Deadline): Promise<Info> {
    return readInfo(await this.send(deadline, (rpc, options) => rpc.info({}, options)));
  }

  /** Asks what the daemon is doing right now. */
  async health(deadline: Deadline): Promise<Health> {
    return readHealth(await this.send(deadline, (rpc, options) => rpc.health({}, options)));
  }

  /** Asks for the limits of a request, once for each daemon; the rest of this Info may be out of date. */
  async limits(deadline: Deadline): Promise<Info> {
    this.#limits ??= await this.info(deadline);
    return this.#limits;
  }
}
