/** The client: the daemon's methods as methods. */

import { type Health, type Info, noVector, type Outcome, readOutcome, readVector, SpaceGuard } from "./answers.js";
import { Calls } from "./calls.js";
import { type CentroidNames, centroidMessages, readCentroids } from "./centroids.js";
import { RunedError } from "./errors.js";
import type { EmbedBatchResponse } from "./gen/runed/v1/runed_pb.js";
import {
  type CallOptions,
  checkKnown,
  type EmbedOptions,
  embedFields,
  type ItemOptions,
  type PromptOptions,
  promptFields,
  tooOld,
} from "./options.js";
import { embedStream } from "./stream.js";
import { Target } from "./target.js";
import { checkLength, encodedLength, LARGE_TEXT, listed, measure, relocated, split, TEXT_OVERHEAD } from "./texts.js";
import { Link, type Protocol } from "./transport.js";
import { Deadline } from "./waiting.js";

/** Bytes at most of the options of a request beside the instruction. */
const OPTIONS_OVERHEAD = 40;

/** What `connect` takes. */
export interface ConnectOptions {
  /** The directory of the daemon, instead of `RUNED_HOME` or `~/.runed`. */
  home?: string | undefined;
  /** The socket of a daemon that is looked after by others; it is never started. */
  socketPath?: string | undefined;
  /** Whether to start a daemon if none runs, now and when it went away later; true by default. */
  spawn?: boolean | undefined;
  /** Called with each change of Health while a call waits for engine and model. */
  onProgress?: ((health: Health) => void) | undefined;
  /** What to speak; "connect" by default. The others differ in nothing that a caller would see. */
  protocol?: Protocol | undefined;
  /** Milliseconds that the connect, and each call, may take in all, waiting included; by default a call takes what it takes. */
  timeoutMs?: number | undefined;
  /** Breaks the connect off. */
  signal?: AbortSignal | undefined;
}

/**
 * Connects to the daemon, which is started if none runs.
 *
 * Returns as soon as the daemon listens; embeddings then wait while it fetches its engine and model.
 *
 * @throws RunedError DAEMON_UNAVAILABLE: No daemon runs, and none was to be started. DAEMON_START_FAILED: It could not be
 * started; the message ends with the tail of its log. BAD_SETTING: A setting of the daemon cannot be used.
 */
export async function connect(options: ConnectOptions = {}): Promise<Client> {
  const target = new Target(options);
  await target.ensure(new Deadline(options.timeoutMs, options.signal, "no daemon listened"));
  return new Client(target, options);
}

/**
 * A connection to the daemon, for any number of calls at a time; `connect` makes it.
 *
 * Every method rejects with a `RunedError`, whose message says what to do, or with the reason of an aborted signal. If the daemon
 * went away since the last call, it is started again, unless the client was told not to, and the call is repeated once. If the
 * daemon or its engine is too busy for the moment, the call is repeated in growing pauses until its time is over, without a
 * `timeoutMs` for a minute; the error is then the daemon's own.
 *
 * A client that nobody closes does not keep the process alive.
 */
export class Client {
  readonly #target: Target;
  readonly #timeoutMs: number | undefined;
  readonly #link: Link;
  readonly #calls: Calls;

  /** @internal */
  constructor(target: Target, { protocol = "connect", timeoutMs, onProgress }: ConnectOptions) {
    this.#target = target;
    this.#timeoutMs = timeoutMs;
    this.#link = new Link(target, protocol);
    this.#calls = new Calls(target, this.#link, onProgress);
  }

  /** The socket that the daemon listens on. */
  get socketPath(): string {
    return this.#target.socket;
  }

  /**
   * Embeds one text. Waits while the daemon fetches its engine and model, which takes minutes the first time.
   *
   * @param text - The text; not empty, and at most `Info.maxTextLength` tokens long unless `truncate` allows more.
   * @returns A vector of L2 norm 1.
   * @throws RunedError EMPTY_TEXT, INVALID_TEXT, TEXT_TOO_LONG and the like: The text or an option cannot be used.
   * BACKEND_UNAVAILABLE, BACKEND_FAULT: The engine cannot be installed or started, or failed. QUEUE_FULL: The daemon had too
   * much to do for all of the time. DEADLINE_EXCEEDED: The time was over first.
   */
  async embed(text: string, options: EmbedOptions = {}): Promise<Float32Array> {
    const deadline = this.#deadline(options);
    const fields = embedFields(options);
    const length = encodedLength(text);
    if (length > LARGE_TEXT) {
      checkLength(length + TEXT_OVERHEAD, (await this.#room(deadline, fields.instruction)).maxBytes);
    }
    const request = { text, ...fields };
    const response = await this.#calls.sendWhenReady(deadline, (rpc, rpcOptions) => rpc.embed(request, rpcOptions));
    checkKnown(options, response.fingerprint);
    return readVector(response);
  }

  /**
   * Embeds many texts, by as many requests as the daemon's limits demand.
   *
   * @param texts - The texts, each as for `embed`.
   * @returns Vectors of L2 norm 1 in the order of the texts.
   * @throws RunedError As `embed`; `metadata.index` tells the first text at fault. Also if the daemon was restarted with another
   * model on the way.
   */
  async embedBatch(texts: Iterable<string>, options: EmbedOptions = {}): Promise<Float32Array[]> {
    const deadline = this.#deadline(options);
    const fields = embedFields(options);
    const list = listed(texts);
    if (list.length === 0) {
      return [];
    }
    const { maxTexts, maxBytes } = await this.#room(deadline, fields.instruction);
    const lengths = list.map((text, index) => measure(text, index, maxBytes));
    const vectors: Float32Array[] = [];
    const space = new SpaceGuard();
    for (const [start, end] of split(lengths, maxTexts, maxBytes)) {
      const request = { texts: list.slice(start, end), ...fields };
      const response = await this.#embedBatch(request, deadline).catch((error: unknown) => {
        throw relocated(error, start, end - start);
      });
      checkKnown(options, response.fingerprint);
      space.check(response.fingerprint);
      for (const embedding of response.embeddings) {
        vectors.push(readVector(embedding));
      }
    }
    return vectors;
  }

  /**
   * Embeds many texts with all that the daemon tells about each; one that cannot be embedded leaves the others alone.
   *
   * @param texts - As for `embedBatch`.
   * @returns One outcome a text, in their order: the embedding, or the `RunedError` that says why there is none.
   * @throws RunedError As `embedBatch`, where it does not belong to a single text.
   */
  async embedItems(texts: Iterable<string>, options: ItemOptions = {}): Promise<Outcome[]> {
    const deadline = this.#deadline(options);
    const fields = { ...embedFields(options), withRoute: options.withRoute ?? false, perItemErrors: true };
    const list = listed(texts);
    if (list.length === 0) {
      return [];
    }
    const { maxTexts, maxBytes } = await this.#room(deadline, fields.instruction);
    const outcomes: Outcome[] = [];
    const sendable: number[] = [];
    const lengths: number[] = [];
    for (const [index, text] of list.entries()) {
      try {
        lengths.push(measure(text, index, maxBytes));
        sendable.push(index);
      } catch (error) {
        if (!(error instanceof RunedError)) {
          throw error;
        }
        outcomes[index] = error;
      }
    }
    const space = new SpaceGuard();
    for (const [start, end] of split(lengths, maxTexts, maxBytes)) {
      const part = sendable.slice(start, end);
      const request = { texts: part.map((index) => list[index] as string), ...fields };
      const response = await this.#embedBatch(request, deadline);
      if (response.fingerprint === "") {
        throw tooOld("gives no details of an embedding");
      }
      space.check(response.fingerprint);
      for (const [place, index] of part.entries()) {
        outcomes[index] = readOutcome(response.embeddings[place], response, index);
      }
    }
    return outcomes;
  }

  /**
   * Embeds any number of texts in constant memory, and gives each as it is ready, in no particular order.
   *
   * Texts are taken from `items` while the daemon has room for them. If the daemon goes away on the way, it is started again and
   * gets what was not answered; each text has exactly one outcome. To stop early, leave the loop.
   *
   * @param items - Pairs of an id, which may be anything and need not be unique, and a text.
   * @param options - `timeoutMs` is the time that may pass without an outcome while texts wait for one.
   * @returns The id of a text with its embedding, or with the `RunedError` that says why there is none.
   * @throws RunedError As `embedItems`; DEADLINE_EXCEEDED: No outcome came in time. What `items` throws comes as it is.
   */
  embedStream<K>(
    items: Iterable<readonly [K, string]> | AsyncIterable<readonly [K, string]>,
    options: EmbedOptions = {},
  ): AsyncGenerator<[K, Outcome], void, undefined> {
    return embedStream(this.#calls, items, options, options.timeoutMs ?? this.#timeoutMs);
  }

  /**
   * Counts the tokens of texts as embedding them would, prompts and special ones included, without embedding them.
   *
   * @param texts - The texts; each may be longer than the model reads.
   * @returns One number a text, in their order.
   * @throws RunedError As `embedBatch`.
   */
  async countTokens(texts: Iterable<string>, options: CallOptions & PromptOptions = {}): Promise<number[]> {
    const deadline = this.#deadline(options);
    const fields = promptFields(options);
    const list = listed(texts);
    if (list.length === 0) {
      return [];
    }
    const { maxTexts, maxBytes } = await this.#room(deadline, fields.instruction);
    const lengths = list.map((text, index) => measure(text, index, maxBytes));
    const counts: number[] = [];
    for (const [start, end] of split(lengths, maxTexts, maxBytes)) {
      const request = { texts: list.slice(start, end), ...fields };
      const response = await this.#calls
        .sendWhenReady(deadline, (rpc, rpcOptions) => rpc.countTokens(request, rpcOptions))
        .catch((error: unknown) => {
          throw relocated(error, start, end - start);
        });
      if (response.tokenCounts.length !== end - start) {
        throw new RunedError("INTERNAL", "the daemon counted the tokens of other texts than were asked for; send them again");
      }
      counts.push(...response.tokenCounts);
    }
    return counts;
  }

  /**
   * Replaces the daemon's centroid set, by which `withRoute` tells the nearest centroid of a vector. The set is for all clients of
   * the daemon, which keeps it over its restarts; one that fails to arrive leaves the one before in its place.
   *
   * @param vectors - The centroids, `Info.vectorDim` values each; the number of one is its id.
   * @returns What the daemon has installed: its version, and the number of its centroids.
   * @throws RunedError BAD_CENTROIDS: The set cannot be one of this model; the message says why.
   */
  async setCentroids(
    vectors: Iterable<ArrayLike<number>>,
    options: CallOptions & CentroidNames = {},
  ): Promise<{ version: string; nlist: number }> {
    const deadline = this.#deadline(options);
    const set = readCentroids(vectors);
    const { version, nlist } = await this.#calls.sendWhenReady(deadline, (rpc, rpcOptions) =>
      rpc.setCentroids(centroidMessages(set, options), rpcOptions),
    );
    return { version, nlist };
  }

  /**
   * Waits while the daemon fetches its engine and model.
   *
   * @returns What the daemon and its model are, complete.
   * @throws RunedError BACKEND_UNAVAILABLE: The engine cannot be installed or started. DEADLINE_EXCEEDED: The time was over first.
   */
  async waitUntilReady(options: CallOptions = {}): Promise<Info> {
    const deadline = this.#deadline(options);
    for (;;) {
      const info = await this.#calls.info(deadline);
      if (info.vectorDim > 0) {
        return info;
      }
      await this.#calls.waitOutBootstrap(deadline);
    }
  }

  /** Asks what the daemon and its model are, at any stage. */
  async info(options: CallOptions = {}): Promise<Info> {
    return await this.#calls.info(this.#deadline(options));
  }

  /** Asks what the daemon is doing right now. */
  async health(options: CallOptions = {}): Promise<Health> {
    return await this.#calls.health(this.#deadline(options));
  }

  /**
   * Asks the daemon to finish what is in flight and to exit; returns before it has. It is not started for that.
   *
   * @param options - `graceSeconds` is how long what is in flight may take; by default the daemon's own 10, at most 300.
   */
  async shutdown(options: CallOptions & { graceSeconds?: number | undefined } = {}): Promise<void> {
    const request = { graceSeconds: options.graceSeconds ?? 0 };
    await this.#calls.sendOnce(this.#deadline(options), (rpc, rpcOptions) => rpc.shutdown(request, rpcOptions));
  }

  /** Closes the connection; calls that are under way fail with CLOSED. The daemon goes on for others. */
  async close(): Promise<void> {
    this.#link.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #deadline({ timeoutMs, signal }: CallOptions): Deadline {
    return new Deadline(timeoutMs ?? this.#timeoutMs, signal);
  }

  /** Gives how many texts, and bytes of texts, one request may have beside its options. */
  async #room(deadline: Deadline, instruction: string): Promise<{ maxTexts: number; maxBytes: number }> {
    const { maxBatchSize, maxRequestBytes } = await this.#calls.limits(deadline);
    return { maxTexts: maxBatchSize, maxBytes: maxRequestBytes - Buffer.byteLength(instruction) - OPTIONS_OVERHEAD };
  }

  async #embedBatch(
    request: { texts: string[] } & ReturnType<typeof embedFields>,
    deadline: Deadline,
  ): Promise<EmbedBatchResponse> {
    const response = await this.#calls.sendWhenReady(deadline, (rpc, options) => rpc.embedBatch(request, options));
    if (response.embeddings.length !== request.texts.length) {
      throw noVector();
    }
    return response;
  }
}
