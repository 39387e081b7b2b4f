/**
 * The work of `embedStream`. Three parts run side by side and meet at a `Job`: the feeder takes texts from the caller's iterable,
 * the talker exchanges them with the daemon for outcomes, and the caller takes the outcomes.
 */

import { setImmediate as turn } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Outcome, readOutcome, SpaceGuard } from "./answers.js";
import { type Calls, Tries } from "./calls.js";
import { kindOf, RunedError } from "./errors.js";
import { EmbedStreamRequestSchema, type EmbedStreamResponse } from "./gen/runed/v1/runed_pb.js";
import { checkKnown, type EmbedOptions, embedFields } from "./options.js";
import { ITEM_OVERHEAD, MESSAGE_BYTES, MESSAGE_TEXTS, STREAM_BYTES, STREAM_TEXTS } from "./policy.js";
import { checkLength, encodedLength, sizeOf } from "./texts.js";
import { Deadline } from "./waiting.js";

type Request = MessageInitShape<typeof EmbedStreamRequestSchema>;

/** Milliseconds for which texts are taken from a blocking iterable before other work has its turn. */
const LONGEST_TURN_MS = 5;

/** Milliseconds that a timer is late at most while the thread is free. */
const MOST_LATE_MS = 50;

/** Wakes all that wait for a change. */
class Bell {
  #sleepers: (() => void)[] = [];

  ring(): void {
    for (const wake of this.#sleepers.splice(0)) {
      wake();
    }
  }

  wait(): Promise<void> {
    return new Promise((wake) => {
      this.#sleepers.push(wake);
    });
  }
}

interface Entry<K> {
  key: K;
  text: string;
  size: number;
}

/** The texts of one stream that are not answered yet, and the outcomes that the caller has yet to take. */
class Job<K> {
  readonly changed = new Bell();
  sourceEnded = false;
  taken = 0;
  ready: [K, Outcome][] = [];
  readonly #entries = new Map<number, Entry<K>>();
  #queue: number[] = [];
  #queuedBytes = 0;
  #bytes = 0;

  get unanswered(): number {
    return this.#entries.size;
  }

  get hasQueued(): boolean {
    return this.#queue.length > 0;
  }

  /** Whether another text may be taken from the caller's iterable. */
  get hasRoom(): boolean {
    return (
      this.#queue.length + this.ready.length < MESSAGE_TEXTS &&
      this.#queuedBytes < MESSAGE_BYTES &&
      this.#entries.size < STREAM_TEXTS &&
      this.#bytes < STREAM_BYTES
    );
  }

  add(key: K, text: string): void {
    this.taken += 1;
    try {
      const size = encodedLength(text) + ITEM_OVERHEAD;
      this.#entries.set(this.taken, { key, text, size });
      this.#bytes += size;
      this.#enqueue(this.taken, size);
    } catch (error) {
      if (!(error instanceof RunedError)) {
        throw error;
      }
      this.ready.push([key, error]);
    }
    this.changed.ring();
  }

  /** Takes texts from the queue for one message. It answers a text that is too large for any message. */
  nextItems(maxBytes: number): { id: string; text: string }[] {
    const items: { id: string; text: string }[] = [];
    let total = 0;
    for (const number of this.#queue) {
      const entry = this.#entries.get(number) as Entry<K>;
      if (items.length === MESSAGE_TEXTS || (total > 0 && total + entry.size > Math.min(MESSAGE_BYTES, maxBytes))) {
        break;
      }
      total += entry.size;
      items.push({ id: String(number), text: entry.text });
    }
    this.#queue.splice(0, items.length);
    this.#queuedBytes -= total;
    if (total > maxBytes) {
      // It is alone.
      const number = Number(items.pop()?.id);
      try {
        checkLength(total, maxBytes);
      } catch (error) {
        this.answer(number, error as RunedError);
      }
    }
    this.changed.ring();
    return items;
  }

  /** Settles a text. */
  answer(number: number, outcome: Outcome): void {
    const entry = this.#entries.get(number);
    if (entry === undefined) {
      throw new RunedError("INTERNAL", "the daemon answered a text that was not sent, or answered it twice");
    }
    this.#entries.delete(number);
    this.#bytes -= entry.size;
    this.ready.push([entry.key, outcome]);
  }

  /** Queues all unanswered texts, for another connection. */
  requeue(): void {
    this.#queue = [];
    this.#queuedBytes = 0;
    for (const [number, entry] of this.#entries) {
      this.#enqueue(number, entry.size);
    }
  }

  handOver(): [K, Outcome][] {
    return this.ready.splice(0);
  }

  #enqueue(number: number, size: number): void {
    this.#queue.push(number);
    this.#queuedBytes += size;
  }
}

/** Takes texts from the caller's iterable while the job has room for them. */
class Feeder<K> {
  readonly #job: Job<K>;
  readonly #source: Iterator<readonly [K, string]> | AsyncIterator<readonly [K, string]>;
  #stopped = false;
  #taking = false;

  constructor(job: Job<K>, items: Iterable<readonly [K, string]> | AsyncIterable<readonly [K, string]>) {
    this.#job = job;
    this.#source = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  }

  async run(): Promise<void> {
    let began = performance.now();
    while (!this.#stopped) {
      if (!this.#job.hasRoom) {
        await this.#job.changed.wait();
        continue;
      }
      if (performance.now() - began > LONGEST_TURN_MS) {
        await turn();
        began = performance.now();
      }
      this.#taking = true;
      const step = await this.#source.next();
      this.#taking = false;
      if (step.done) {
        this.#job.sourceEnded = true;
        this.#job.changed.ring();
        return;
      }
      try {
        this.#add(step.value);
      } catch (error) {
        await this.#source.return?.();
        throw error;
      }
    }
    await this.#source.return?.();
  }

  /** Ends the feeder. Does not wait for an iterable that is about to yield its next text. */
  async stop(running: Promise<void>): Promise<void> {
    this.#stopped = true;
    this.#job.changed.ring();
    if (!this.#taking) {
      await running;
    }
  }

  #add(item: unknown): void {
    if (!Array.isArray(item) || item.length !== 2) {
      throw new TypeError("embedStream takes pairs of an id and a text");
    }
    const [key, text] = item as [K, string];
    if (!this.#stopped) {
      this.#job.add(key, text);
    }
  }
}

/** Ends a stream from which no outcome comes in time. */
class Watch {
  readonly #timeoutMs: number;
  readonly #timer: NodeJS.Timeout | undefined;
  #due = 0;

  /**
   * @param timeoutMs - The time; undefined means no limit.
   * @param starving - Tells whether an outcome is due.
   * @param expire - Called when the outcome did not come in time.
   */
  constructor(timeoutMs: number | undefined, starving: () => boolean, expire: () => void) {
    this.#timeoutMs = timeoutMs ?? 0;
    if (timeoutMs !== undefined) {
      const look = () => {
        // A late timer means that the caller kept the thread busy. Nothing could be read then.
        const busy = performance.now() - this.#due > MOST_LATE_MS;
        if (busy || !starving()) {
          this.feed();
        } else {
          expire();
        }
      };
      this.#timer = setTimeout(look, timeoutMs);
      this.feed();
    }
  }

  /** Begins again. */
  feed(): void {
    this.#due = performance.now() + this.#timeoutMs;
    this.#timer?.refresh();
  }

  end(): void {
    clearTimeout(this.#timer);
  }
}

/** The kinds of errors of a daemon that went away. */
const GONE = new Set(["SHUTTING_DOWN", "DAEMON_UNAVAILABLE"]);

/** Exchanges the texts of a job with the daemon, over as many connections as it takes. */
class Talker<K> {
  readonly #calls: Calls;
  readonly #job: Job<K>;
  readonly #options: EmbedOptions;
  readonly #fields: ReturnType<typeof embedFields>;
  readonly #deadline: Deadline;
  readonly #tries: Tries;
  readonly #space = new SpaceGuard();

  constructor(calls: Calls, job: Job<K>, options: EmbedOptions, timeoutMs: number | undefined, signal: AbortSignal) {
    this.#calls = calls;
    this.#job = job;
    this.#options = options;
    this.#fields = embedFields(options);
    this.#deadline = new Deadline(timeoutMs, signal, "no embedding of the stream came");
    this.#tries = new Tries(this.#deadline, { reconnect: true });
  }

  async run(): Promise<void> {
    const job = this.#job;
    while (job.unanswered > 0 || !job.sourceEnded) {
      this.#deadline.signal?.throwIfAborted();
      if (!job.hasQueued) {
        await job.changed.wait();
        this.#deadline.restart();
        continue;
      }
      try {
        await this.#converse();
      } catch (error) {
        await this.#overcome(error);
      }
      job.requeue();
    }
  }

  /** Prepares another connection; throws the error if that would be of no use. */
  async #overcome(error: unknown): Promise<void> {
    if (this.#job.unanswered === 0 && error instanceof RunedError && GONE.has(kindOf(error))) {
      return; // the next text opens another connection, if one comes
    }
    if (error instanceof RunedError && error.reason === "BOOTSTRAPPING") {
      await this.#calls.waitOutBootstrap(this.#deadline, this.#fields.model);
    } else {
      await this.#calls.recover(error, this.#tries);
    }
  }

  /** Sends and receives on one stream until it is over. */
  async #converse(): Promise<void> {
    const { maxRequestBytes } = await this.#calls.askLimits(this.#deadline, this.#fields.model);
    const maxBytes = maxRequestBytes - sizeOf(EmbedStreamRequestSchema, this.#fields);
    const life = new AbortController();
    const parent = this.#deadline.signal as AbortSignal;
    const die = () => life.abort(parent.reason);
    parent.addEventListener("abort", die, { once: true });
    const watch = new Watch(
      this.#deadline.timeoutMs,
      () => this.#job.unanswered > 0 && this.#job.ready.length === 0,
      () => life.abort(this.#deadline.exceeded()),
    );
    try {
      const options = new Deadline(undefined, life.signal);
      await this.#calls.converse(options, async (rpc, rpcOptions) => {
        for await (const answer of rpc.embedStream(this.#requests(maxBytes, life.signal, watch), rpcOptions)) {
          this.#receive(answer);
          watch.feed();
          this.#job.changed.ring();
          while (this.#job.ready.length > 0 && !life.signal.aborted) {
            await this.#job.changed.wait();
          }
          watch.feed();
        }
      });
    } finally {
      watch.end();
      parent.removeEventListener("abort", die);
      life.abort();
      this.#deadline.restart();
    }
    if (this.#job.unanswered > 0) {
      throw new RunedError("SHUTTING_DOWN", "the daemon ended the stream before it had answered all texts");
    }
  }

  async *#requests(maxBytes: number, life: AbortSignal, watch: Watch): AsyncGenerator<Request> {
    const job = this.#job;
    yield this.#fields;
    while (!life.aborted) {
      if (job.hasQueued) {
        // The texts that the iterable has at hand go into the same message.
        await turn();
        if (life.aborted) {
          return;
        }
        const items = job.nextItems(maxBytes);
        watch.feed();
        if (items.length > 0) {
          yield { items };
        }
      } else if (job.sourceEnded) {
        return;
      } else {
        await job.changed.wait();
      }
    }
  }

  /** Settles the texts that the daemon has answered. */
  #receive(answer: EmbedStreamResponse): void {
    for (const { id, embedding } of answer.results) {
      const outcome = readOutcome(embedding, answer);
      if (!(outcome instanceof RunedError)) {
        checkKnown(this.#options, answer);
        this.#space.check(answer.fingerprint);
      }
      this.#job.answer(Number(id), outcome);
      this.#tries.reset();
    }
  }
}

/** Embeds the texts of an iterable, and yields each as it is ready; arguments as for `Client.embedStream`. */
export async function* embedStream<K>(
  calls: Calls,
  items: Iterable<readonly [K, string]> | AsyncIterable<readonly [K, string]>,
  options: EmbedOptions,
  timeoutMs: number | undefined,
): AsyncGenerator<[K, Outcome], void, undefined> {
  const { signal } = options;
  signal?.throwIfAborted();
  calls.checkOpen();
  const job = new Job<K>();
  const life = new AbortController();
  const end = (error?: unknown) => {
    life.abort(error);
    job.changed.ring();
  };
  const abort = () => end(signal?.reason);
  const talker = new Talker(calls, job, options, timeoutMs, life.signal);
  const feeder = new Feeder(job, items);
  signal?.addEventListener("abort", abort, { once: true });
  const feeding = feeder.run().catch(end);
  let outcome: { error?: unknown } | undefined;
  const talking = talker.run().then(
    () => {
      outcome = {};
      job.changed.ring();
    },
    (error: unknown) => {
      outcome = { error };
      job.changed.ring();
    },
  );
  try {
    for (;;) {
      for (const result of job.handOver()) {
        yield result;
        life.signal.throwIfAborted();
      }
      job.changed.ring();
      if (job.ready.length > 0) {
        continue;
      }
      if (outcome !== undefined) {
        if ("error" in outcome) {
          throw outcome.error;
        }
        return;
      }
      await job.changed.wait();
      life.signal.throwIfAborted();
    }
  } finally {
    signal?.removeEventListener("abort", abort);
    end();
    await feeder.stop(feeding);
    await talking;
  }
}
