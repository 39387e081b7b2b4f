/** The client: the daemon's methods as methods. */

import type { DescMessage, MessageInitShape } from "@bufbuild/protobuf";
import type { Interceptor } from "@connectrpc/connect";
import { type Health, type Info, noVector, type Outcome, readOutcome, readVector, SpaceGuard } from "./answers.js";
import { Calls } from "./calls.js";
import { type CentroidNames, centroidMessages, readCentroids } from "./centroids.js";
import { RunedError } from "./errors.js";
import {
  CountTokensRequestSchema,
  EmbedBatchRequestSchema,
  type EmbedBatchResponse,
  EmbedRequestSchema,
  RerankRequestSchema,
} from "./gen/runed/v1/runed_pb.js";
import {
  type CallOptions,
  checkKnown,
  checkNamed,
  type EmbedOptions,
  embedFields,
  type ItemOptions,
  type ModelOptions,
  modelName,
  type PromptOptions,
  promptFields,
  tooOld,
} from "./options.js";
import { LARGE_TEXT, TEXT_OVERHEAD } from "./policy.js";
import { type RankedDocument, type RerankOptions, type Room, rerank } from "./ranking.js";
import { embedStream } from "./stream.js";
import { type Place, Target } from "./target.js";
import { checkLength, encodedLength, listed, measure, relocated, sizeOf, split } from "./texts.js";
import { Link, type Protocol } from "./transport.js";
import { Deadline } from "./waiting.js";

/** The options of `connect`. */
export interface ConnectOptions extends Place {
  /** Called with each change of Health while a call waits for engine and model. */
  onProgress?: ((health: Health) => void) | undefined;
  /** The protocol on the socket; "connect" by default. All can do the same. */
  protocol?: Protocol | undefined;
  /**
   * Interceptors of Connect for all calls, the first one outermost. One that sets the header `traceparent` makes the daemon's spans
   * a part of the application's traces.
   */
  interceptors?: Interceptor[] | undefined;
  /** Milliseconds that the connect, and each call, may take, waiting included. By default a call has no limit. */
  timeoutMs?: number | undefined;
  /** Ends the connect early. */
  signal?: AbortSignal | undefined;
}

/**
 * Connects to the daemon, and starts it if none runs.
 *
 * Returns as soon as the daemon listens. Embeddings then wait while the daemon fetches its engine and model. A daemon that is older
 * than this package is replaced, after it has finished what is in flight, if the installed `runed` is newer.
 *
 * @throws RunedError DAEMON_UNAVAILABLE: No daemon runs, and none may be started. DAEMON_START_FAILED: The daemon could not be
 * started; the message says why. BAD_SETTING: A setting of the daemon cannot be used.
 */
export async function connect(options: ConnectOptions = {}): Promise<Client> {
  const target = new Target(options);
  await target.ensure(new Deadline(options.timeoutMs, options.signal, "no daemon listened"));
  return new Client(target, options);
}

/**
 * A connection to the daemon, for any number of calls at a time. `connect` makes it.
 *
 * Every method rejects with a `RunedError`, whose message says what to do, or with the reason of an aborted signal. If the daemon
 * has gone away since the last call, the client starts it again, unless it was told not to, and sends the call again, three times at
 * most. If the daemon or its engine is too busy for the moment, the client sends the call again in growing pauses until the call's
 * time is over. Without a `timeoutMs` it does so for a minute. The error is then the daemon's own.
 *
 * A client that is not closed does not keep the process alive.
 */
export class Client {
  readonly #target: Target;
  readonly #timeoutMs: number | undefined;
  readonly #link: Link;
  readonly #calls: Calls;

  /** @internal */
  constructor(target: Target, { protocol = "connect", interceptors = [], timeoutMs, onProgress }: ConnectOptions) {
    this.#target = target;
    this.#timeoutMs = timeoutMs;
    this.#link = new Link(target, protocol, interceptors);
    this.#calls = new Calls(target, this.#link, onProgress);
  }

  /** The socket that the daemon listens on. */
  get socketPath(): string {
    return this.#target.socket;
  }

  /**
   * Embeds one text. Waits while the daemon fetches its engine and model, which takes minutes the first time.
   *
   * @param text - The text. It must not be empty, nor have more tokens than `Info.maxTextLength` unless `truncate` allows it.
   * @returns A vector of L2 norm 1.
   * @throws RunedError EMPTY_TEXT, INVALID_TEXT, TEXT_TOO_LONG and others: The text or an option cannot be used.
   * BACKEND_UNAVAILABLE, BACKEND_FAULT: The engine cannot be installed or started, or failed. QUEUE_FULL: The daemon had too
   * much to do for as long as the call was tried. DEADLINE_EXCEEDED: The time was over first.
   */
  async embed(text: string, options: EmbedOptions = {}): Promise<Float32Array> {
    const deadline = this.#deadline(options);
    const fields = embedFields(options);
    const length = encodedLength(text);
    const send = () =>
      this.#calls.sendWhenReady(deadline, fields.model, (rpc, rpcOptions) => rpc.embed({ text, ...fields }, rpcOptions));
    const response =
      length <= LARGE_TEXT
        ? await send()
        : await this.#within(deadline, fields.model, EmbedRequestSchema, fields, ({ maxBytes }) => {
            checkLength(length + TEXT_OVERHEAD, maxBytes);
            return send();
          });
    checkKnown(options, response);
    return readVector(response);
  }

  /**
   * Embeds many texts. It sends as many requests as the daemon's limits demand.
   *
   * @param texts - The texts, each as for `embed`.
   * @returns Vectors of L2 norm 1 in the order of the texts.
   * @throws RunedError As `embed`; `metadata.index` tells the first text at fault. INTERNAL: The daemon was restarted with another
   * model on the way.
   */
  async embedBatch(texts: Iterable<string>, options: EmbedOptions = {}): Promise<Float32Array[]> {
    const deadline = this.#deadline(options);
    const fields = embedFields(options);
    const list = listed(texts);
    if (list.length === 0) {
      return [];
    }
    return await this.#within(deadline, fields.model, EmbedBatchRequestSchema, fields, async ({ maxTexts, maxBytes }) => {
      const lengths = list.map((text, index) => measure(text, index, maxBytes));
      const vectors: Float32Array[] = [];
      const space = new SpaceGuard();
      for (const [start, end] of split(lengths, maxTexts, maxBytes)) {
        const request = { texts: list.slice(start, end), ...fields };
        const response = await this.#embedBatch(request, deadline).catch((error: unknown) => {
          throw relocated(error, start, end - start);
        });
        checkKnown(options, response);
        space.check(response.fingerprint);
        for (const embedding of response.embeddings) {
          const vector = readVector(embedding);
          if (vector.length !== (vectors[0] ?? vector).length) {
            throw noVector();
          }
          vectors.push(vector);
        }
      }
      return vectors;
    });
  }

  /**
   * Embeds many texts, and tells more about each. A text that cannot be embedded does not fail the others.
   *
   * @param texts - As for `embedBatch`.
   * @returns One outcome for each text, in their order: the embedding, or the `RunedError` that says why there is none.
   * @throws RunedError As `embedBatch`, if the fault is not that of a single text.
   */
  async embedItems(texts: Iterable<string>, options: ItemOptions = {}): Promise<Outcome[]> {
    const deadline = this.#deadline(options);
    const fields = { ...embedFields(options), withRoute: options.withRoute ?? false, perItemErrors: true };
    const list = listed(texts);
    if (list.length === 0) {
      return [];
    }
    return await this.#within(deadline, fields.model, EmbedBatchRequestSchema, fields, async ({ maxTexts, maxBytes }) => {
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
        checkNamed(fields.model, response.model);
        space.check(response.fingerprint);
        for (const [place, index] of part.entries()) {
          outcomes[index] = readOutcome(response.embeddings[place], response, index);
        }
      }
      return outcomes;
    });
  }

  /**
   * Embeds any number of texts in constant memory. It yields each as it is ready, in no particular order.
   *
   * It takes texts from `items` while the daemon has room for them. If the daemon goes away on the way, the client starts it again
   * and sends the unanswered texts once more. Each text has exactly one outcome. To stop early, leave the loop.
   *
   * @param items - Pairs of an id, which may be anything and need not be unique, and a text.
   * @param options - `timeoutMs` limits the time without an outcome while texts wait for one.
   * @returns The id of a text with its embedding, or with the `RunedError` that says why there is none.
   * @throws RunedError As `embedItems`. DEADLINE_EXCEEDED: No outcome came in time. An error that `items` throws comes as it is.
   */
  embedStream<K>(
    items: Iterable<readonly [K, string]> | AsyncIterable<readonly [K, string]>,
    options: EmbedOptions = {},
  ): AsyncGenerator<[K, Outcome], void, undefined> {
    return embedStream(this.#calls, items, options, options.timeoutMs ?? this.#timeoutMs);
  }

  /**
   * Counts the tokens that embedding each text would take: those of the text, those of its prompt, and special ones. It embeds
   * nothing.
   *
   * @param texts - The texts. Each may be longer than the model reads.
   * @returns One number for each text, in their order.
   * @throws RunedError As `embedBatch`.
   */
  async countTokens(texts: Iterable<string>, options: CallOptions & PromptOptions = {}): Promise<number[]> {
    const deadline = this.#deadline(options);
    const fields = promptFields(options);
    const list = listed(texts);
    if (list.length === 0) {
      return [];
    }
    return await this.#within(deadline, fields.model, CountTokensRequestSchema, fields, async ({ maxTexts, maxBytes }) => {
      const lengths = list.map((text, index) => measure(text, index, maxBytes));
      const counts: number[] = [];
      for (const [start, end] of split(lengths, maxTexts, maxBytes)) {
        const request = { texts: list.slice(start, end), ...fields };
        const response = await this.#calls
          .sendWhenReady(deadline, fields.model, (rpc, rpcOptions) => rpc.countTokens(request, rpcOptions))
          .catch((error: unknown) => {
            throw relocated(error, start, end - start);
          });
        if (response.tokenCounts.length !== end - start) {
          throw new RunedError("INTERNAL", "the daemon counted the tokens of other texts than were asked for; send them again");
        }
        checkNamed(fields.model, response.model);
        counts.push(...response.tokenCounts);
      }
      return counts;
    });
  }

  /**
   * Ranks documents by their relevance to a query. It sends as many requests as the daemon's limits demand.
   *
   * @param query - The question or search phrase. It must not be blank.
   * @param documents - The documents. None may be blank.
   * @returns The documents with their scores, the best one first. Documents of equal scores keep their order.
   * @throws RunedError As `embed`; `metadata.index` tells the first document at fault. UNKNOWN_MODEL: The daemon has no such
   * model, or no reranker, or several. WRONG_MODEL_KIND: The model makes embeddings.
   */
  async rerank(query: string, documents: Iterable<string>, options: RerankOptions = {}): Promise<RankedDocument[]> {
    const deadline = this.#deadline(options);
    return await rerank(
      this.#calls,
      (fields, send) => this.#within(deadline, fields.model || undefined, RerankRequestSchema, fields, send),
      deadline,
      query,
      documents,
      options,
    );
  }

  /**
   * Replaces the daemon's centroid set, in which `withRoute` finds the nearest centroid of a vector.
   *
   * Each model has a set of its own. All clients of the daemon share it, and the daemon keeps it over its restarts. A set that does
   * not arrive whole leaves the one before in its place.
   *
   * @param vectors - The centroids, `Info.vectorDim` values each. The place of a centroid is its id.
   * @returns The version of the installed set, and the number of its centroids.
   * @throws RunedError BAD_CENTROIDS: The set cannot be one of this model; the message says why.
   */
  async setCentroids(
    vectors: Iterable<ArrayLike<number>>,
    options: CallOptions & ModelOptions & CentroidNames = {},
  ): Promise<{ version: string; nlist: number }> {
    const deadline = this.#deadline(options);
    const named = modelName(options);
    const set = readCentroids(vectors);
    const { version, nlist, model } = await this.#calls.sendWhenReady(deadline, named, (rpc, rpcOptions) =>
      rpc.setCentroids(centroidMessages(set, options, named), rpcOptions),
    );
    checkNamed(named, model);
    return { version, nlist };
  }

  /**
   * Waits while the daemon fetches its engine and model, and then describes both.
   *
   * @throws RunedError As `info`, but not BOOTSTRAPPING.
   */
  async waitUntilReady(options: CallOptions & ModelOptions = {}): Promise<Info> {
    return await this.#calls.info(this.#deadline(options), modelName(options), "wait");
  }

  /**
   * Describes the daemon and a model. Waits while the daemon prepares an engine and a model that are already there.
   *
   * @throws RunedError BOOTSTRAPPING: The daemon downloads one of them; `metadata` has `bytes_done` and `bytes_total`.
   * BACKEND_UNAVAILABLE: The engine cannot be installed or started. DEADLINE_EXCEEDED: The time was over first. UNKNOWN_MODEL: The
   * daemon has no such model. MODEL_NOT_INSTALLED: The model was not fetched. UNIMPLEMENTED: The daemon is too old, and has one
   * model.
   */
  async info(options: CallOptions & ModelOptions = {}): Promise<Info> {
    return await this.#calls.info(this.#deadline(options), modelName(options), "refuse");
  }

  /**
   * Starts the engine ahead of the first text, and returns when an embedding would be computed at once. Waits while the daemon
   * fetches its engine and model. The engine is suspended again after the idle time, as after an embedding.
   *
   * @param options - `model` may name a reranker, too.
   * @throws RunedError As `info`, but not BOOTSTRAPPING. UNIMPLEMENTED: The daemon is too old. Embed a text instead.
   */
  async warmUp(options: CallOptions & ModelOptions = {}): Promise<void> {
    const model = modelName(options);
    // A daemon with one model knows WarmUp, but not LoadModel.
    await this.#calls.sendWhenReady(this.#deadline(options), model, async (rpc, rpcOptions) =>
      model === "" ? await rpc.warmUp({}, rpcOptions) : await rpc.loadModel({ model }, rpcOptions),
    );
  }

  /** Tells the state of the daemon and of a model at this moment, at any stage. It never wakes a suspended engine. */
  async health(options: CallOptions & ModelOptions = {}): Promise<Health> {
    return await this.#calls.health(this.#deadline(options), modelName(options));
  }

  /**
   * Asks the daemon to finish what is in flight and to exit. Returns before the daemon has ended, and never starts one.
   *
   * @param options - `graceSeconds` is the time that calls in flight may take; by default the daemon's own 10, at most 300.
   */
  async shutdown(options: CallOptions & { graceSeconds?: number | undefined } = {}): Promise<void> {
    const request = { graceSeconds: options.graceSeconds ?? 0 };
    await this.#calls.sendOnce(this.#deadline(options), (rpc, rpcOptions) => rpc.shutdown(request, rpcOptions));
  }

  /** Closes the connection. Calls that are under way fail with CLOSED. The daemon goes on for others. */
  async close(): Promise<void> {
    this.#link.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #deadline({ timeoutMs, signal }: CallOptions): Deadline {
    return new Deadline(timeoutMs ?? this.#timeoutMs, signal);
  }

  /** Makes a call with as much room for texts as one request of a kind has besides its other fields. */
  async #within<D extends DescMessage, T>(
    deadline: Deadline,
    model: string | undefined,
    schema: D,
    fields: MessageInitShape<D>,
    call: (room: Room) => Promise<T>,
  ): Promise<T> {
    const size = sizeOf(schema, fields);
    return await this.#calls.withinLimits(deadline, model, ({ maxBatchSize, maxRequestBytes }) =>
      call({ maxTexts: maxBatchSize, maxBytes: maxRequestBytes - size }),
    );
  }

  async #embedBatch(
    request: { texts: string[] } & ReturnType<typeof embedFields>,
    deadline: Deadline,
  ): Promise<EmbedBatchResponse> {
    const response = await this.#calls.sendWhenReady(deadline, request.model, (rpc, options) =>
      rpc.embedBatch(request, options),
    );
    if (response.embeddings.length !== request.texts.length) {
      throw noVector();
    }
    return response;
  }
}
