/** The bound of what a client does at a time. */

import type { Deadline } from "./waiting.js";

/** A bounded number of places for calls. Further calls wait for a place, in the order of their coming. */
export class Places {
  #free: number;
  readonly #waiting = new Set<() => void>();

  /** @param count - The number of places. */
  constructor(count: number) {
    this.#free = count;
  }

  /**
   * Makes a call in a place of its own.
   *
   * @param deadline - The end of the call, the wait for a place included.
   * @throws RunedError DEADLINE_EXCEEDED: There was no place in time. If the signal of `deadline` was aborted, its reason.
   */
  async hold<T>(deadline: Deadline, call: () => Promise<T>): Promise<T> {
    if (this.#free > 0) {
      this.#free -= 1;
    } else {
      await this.#turn(deadline);
    }
    try {
      return await call();
    } finally {
      this.#giveBack();
    }
  }

  async #turn(deadline: Deadline): Promise<void> {
    const remaining = deadline.remaining();
    await new Promise<void>((resolve, reject) => {
      const turn = () => {
        end();
        resolve();
      };
      const leave = (reason: unknown) => {
        end();
        reject(reason);
      };
      const aborted = () => leave(deadline.signal?.reason);
      const timer = remaining === undefined ? undefined : setTimeout(() => leave(deadline.exceeded()), remaining);
      const end = () => {
        this.#waiting.delete(turn);
        clearTimeout(timer);
        deadline.signal?.removeEventListener("abort", aborted);
      };
      deadline.signal?.addEventListener("abort", aborted, { once: true });
      this.#waiting.add(turn);
    });
  }

  #giveBack(): void {
    const [next] = this.#waiting;
    if (next === undefined) {
      this.#free += 1;
    } else {
      next();
    }
  }
}
