/** The client and a daemon in states that a real daemon is rarely in: a small daemon answers as each test tells it. */

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { after, afterEach, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { BinaryWriter } from "@bufbuild/protobuf/wire";
import type { ServiceImpl } from "@connectrpc/connect";
import { type Client, connect, type Health, RunedError } from "runed-client";
import {
  EmbedBatchResponseSchema,
  EmbedResponseSchema,
  type EmbedStreamRequest,
  type EmbedStreamResponseSchema,
  type HealthResponse_Phase,
  HealthResponse_Status,
  InfoResponseSchema,
  Role,
  type RunedService,
} from "#gen/runed/v1/runed_pb.js";
import { Code, openFiles, openSockets, refusal, serve, shortHome, until, wireError } from "./support.js";

type Methods = Partial<ServiceImpl<typeof RunedService>>;

const folder = shortHome();
const socketPath = join(folder, "d.sock");
const endings: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const end of endings.splice(0)) {
    await end();
  }
});

after(() => rmSync(folder, { recursive: true }));

const VECTOR = { vector: [0.6, 0.8], fingerprint: "fp", tokenCount: 3 };

/** Returns a client of a daemon with these methods. */
async function client(methods: Methods, options: Parameters<typeof connect>[0] = {}): Promise<Client> {
  endings.push(await serve(socketPath, { info: () => ({}), ...methods }));
  const result = await connect({ socketPath, ...options });
  endings.unshift(() => result.close());
  return result;
}

/** Returns a method that fails with each of the errors, and then answers. */
function failing<T>(errors: Error[], answer: T): () => T {
  return () => {
    const error = errors.shift();
    if (error !== undefined) {
      throw error;
    }
    return answer;
  };
}

describe("a daemon that cannot answer for the moment", () => {
  it("is still fetching its model: the call waits, and tells the phases", async () => {
    const bootstrapping = wireError(Code.FailedPrecondition, "BOOTSTRAPPING");
    const states = [
      { status: HealthResponse_Status.OK }, // before the first call
      { status: HealthResponse_Status.LOADING, phase: 2 as HealthResponse_Phase, bytesDone: 5n, bytesTotal: 10n },
      { status: HealthResponse_Status.LOADING, phase: 2 as HealthResponse_Phase, bytesDone: 5n, bytesTotal: 10n },
      { status: HealthResponse_Status.LOADING, phase: 77 as HealthResponse_Phase },
      { status: HealthResponse_Status.IDLE },
    ];
    const told: Health[] = [];
    const caller = await client(
      { embed: failing([bootstrapping], VECTOR), health: () => states.shift() ?? {} },
      { onProgress: (health) => told.push(health) },
    );
    assert.deepEqual(await caller.embed("a"), Float32Array.of(0.6, 0.8));
    assert.deepEqual(
      told.map(({ status, phase, bytesDone, bytesTotal }) => [status, phase, bytesDone, bytesTotal]),
      [
        ["LOADING", "FETCHING_MODEL", 5, 10],
        ["LOADING", "UNSPECIFIED", 0, 0],
        ["IDLE", undefined, 0, 0],
      ],
    );
  });

  it("is still fetching its default model: a call for another one does not wait", async () => {
    const model = "small";
    const caller = await client(
      {
        health: ({ model }) => ({ status: HealthResponse_Status[model === "" ? "LOADING" : "IDLE"], model }),
        info: () => ({ maxBatchSize: 64, maxRequestBytes: 1_000_000n }),
        embed: () => ({ ...VECTOR, model }),
        embedBatch: () => ({ embeddings: [VECTOR], model, fingerprint: "space" }),
        rerank: () => ({ results: [{ index: 0, score: 0.5 }], model: "judge" }),
      },
      { timeoutMs: 5_000, onProgress: ({ status }) => assert.notEqual(status, "LOADING") },
    );
    assert.equal((await caller.rerank("query", ["document"])).length, 1);
    assert.equal((await caller.embed("a", { model })).length, 2);
    assert.equal((await caller.embedBatch(["a"], { model })).length, 1);
    assert.equal((await caller.rerank("query", ["document"], { model: "judge" })).length, 1);
  });

  it("cannot fetch its model: says why", async () => {
    const caller = await client({
      embed: failing([wireError(Code.FailedPrecondition, "BOOTSTRAPPING")], VECTOR),
      health: () => ({ status: HealthResponse_Status.DEGRADED, message: "the disk is full" }),
    });
    const refused = await refusal(caller.embed("a"));
    assert.deepEqual([refused.reason, refused.message], ["BACKEND_UNAVAILABLE", "the disk is full"]);
  });

  it("is not ready in time: says what it waits for", async () => {
    const caller = await client({
      info: () => ({}),
      health: () => ({ status: HealthResponse_Status.LOADING, message: "downloading" }),
    });
    const refused = await refusal(caller.waitUntilReady({ timeoutMs: 150 }));
    assert.equal(refused.reason, "DEADLINE_EXCEEDED");
    assert.match(refused.message, /within 150 ms.*not ready yet: downloading/);
  });

  it("has a full queue: the call comes back after the time that it tells, and at random", async () => {
    const full = () => wireError(Code.ResourceExhausted, "QUEUE_FULL", { limit_texts: "64" }, 0.06);
    const times: number[] = [];
    const answer = failing([full(), full(), full()], VECTOR);
    const caller = await client({
      embed: () => {
        times.push(performance.now());
        return answer();
      },
    });
    await caller.embed("a");
    assert.equal(times.length, 4);
    for (const [index, time] of times.slice(1).entries()) {
      assert.ok(time - (times[index] ?? 0) >= 29, "it came back too soon");
    }
  });

  it("has a full queue for all of the time: its own error is told", async () => {
    let retryAfter = 0.05;
    const caller = await client({
      embed: () => {
        throw wireError(Code.ResourceExhausted, "QUEUE_FULL", { limit_texts: "64" }, retryAfter);
      },
    });
    const refused = await refusal(caller.embed("a", { timeoutMs: 1000 }));
    assert.deepEqual([refused.reason, refused.metadata, refused.retryAfterMs], ["QUEUE_FULL", { limit_texts: "64" }, 50]);
    assert.match(refused.message, /tried \d+ times in/);
    retryAfter = 60;
    const late = await refusal(caller.embed("a", { timeoutMs: 5000 }));
    assert.equal(late.reason, "QUEUE_FULL");
    assert.doesNotMatch(late.message, /tried/);
  });

  it("is about to end: without leave to start another, its error is told", async () => {
    const caller = await client({ embed: failing([wireError(Code.Unavailable, "SHUTTING_DOWN")], VECTOR) });
    assert.equal((await refusal(caller.embed("a"))).reason, "SHUTTING_DOWN");
  });

  it("does not answer: the time is kept, and the daemon is told", async () => {
    let told: number | undefined;
    const caller = await client(
      {
        embed: (_, context) => {
          told = context.timeoutMs();
          return new Promise(() => {});
        },
      },
      { timeoutMs: 80 },
    );
    const late = await refusal(caller.embed("a"));
    assert.equal(late.reason, "DEADLINE_EXCEEDED");
    assert.match(late.message, /did not succeed within 80 ms/);
    assert.ok(told !== undefined && told > 0 && told <= 80, String(told));
  });
});

describe("a stream", () => {
  type Answer = MessageInitShape<typeof EmbedStreamResponseSchema>;

  function answer({ items }: EmbedStreamRequest): Answer {
    return { results: items.map(({ id }) => ({ id, embedding: { vector: [1] } })), fingerprint: "fp" };
  }

  it("that the daemon ends early is gone on with on another", async () => {
    const sent: number[] = [];
    const caller = await client({
      info: () => ({ maxRequestBytes: 1000n }),
      embedStream: async function* (requests) {
        let answered = 0;
        for await (const request of requests) {
          sent.push(request.items.length);
          if (answered > 100) {
            throw wireError(Code.Unavailable, "SHUTTING_DOWN");
          }
          answered += request.items.length;
          yield answer(request);
        }
      },
    });
    const ids: number[] = [];
    const items = Array.from({ length: 300 }, (_, id) => [id, `text ${id}`] as const);
    for await (const [id, outcome] of caller.embedStream([...items, [300, "x".repeat(2000)] as const])) {
      ids.push(id);
      assert.equal(outcome instanceof RunedError ? outcome.reason : outcome.vector[0], id < 300 ? 1 : "REQUEST_TOO_LARGE");
    }
    assert.deepEqual(
      ids.sort((a, b) => a - b),
      Array.from({ length: 301 }, (_, id) => id),
    );
    assert.ok(sent.reduce((sum, count) => sum + count) > 300, "nothing was sent again");
    assert.ok(Math.max(...sent) > 1, "each text went alone");
  });

  it("from which nothing comes is ended in time; the caller's own time does not count", async () => {
    const caller = await client({
      embedStream: async function* (requests) {
        for await (const { items } of requests) {
          for (const { id, text } of items) {
            await delay({ "at once": 0, later: 100 }[text] ?? 100_000, undefined, { ref: false });
            yield { results: [{ id, embedding: { vector: [1] } }], fingerprint: "fp" };
          }
        }
      },
    });
    async function* items(): AsyncGenerator<[string, string]> {
      yield ["a", "at once"];
      yield ["b", "later"];
      await delay(1800);
      yield ["c", "never"];
    }
    const stream = caller.embedStream(items(), { timeoutMs: 400 });
    assert.equal((await stream.next()).value?.[0], "a");
    const began = performance.now();
    const second = stream.next();
    await delay(10);
    while (performance.now() - began < 800);
    assert.equal((await second).value?.[0], "b");
    const refused = await refusal(stream.next());
    assert.match(refused.message, /no embedding of the stream came within 400 ms/);
    assert.ok(performance.now() - began > 1800, "it was ended while no text waited");
  });

  for (const [reason, code] of [
    ["SHUTTING_DOWN", Code.Unavailable],
    ["BACKEND_UNAVAILABLE", Code.Unavailable],
    ["QUEUE_FULL", Code.ResourceExhausted],
  ] as const) {
    it(`that is refused again and again by ${reason} ends in time`, async () => {
      const caller = await client({
        // biome-ignore lint/correctness/useYield: it refuses all
        embedStream: async function* (requests) {
          for await (const { items } of requests) {
            if (items.length > 0) {
              throw wireError(code, reason, {}, 0.05);
            }
          }
        },
      });
      const began = performance.now();
      await refusal(caller.embedStream([["a", "a"]], { timeoutMs: 700 }).next());
      const took = performance.now() - began;
      assert.ok(took > 100 && took < 2000, `it took ${took} ms`);
    });
  }

  it("that mixes the vectors of two models is refused", async () => {
    let model = 0;
    const caller = await client({
      embedStream: async function* (requests) {
        for await (const { items } of requests) {
          for (const { id } of items) {
            model += 1;
            yield { results: [{ id, embedding: { vector: [1] } }], fingerprint: `fp${model}` };
          }
        }
      },
    });
    const stream = caller.embedStream([
      ["a", "one"],
      ["b", "two"],
    ]);
    await stream.next();
    assert.match((await refusal(stream.next())).message, /changed its model/);
  });
});

describe("an answer", () => {
  it("that has a list is read as one", async () => {
    const caller = await client({
      info: () => ({ vectorDim: 2, restrictions: ["nice 3: other processes go first", "2 cores"] }),
    });
    assert.deepEqual((await caller.info()).restrictions, ["nice 3: other processes go first", "2 cores"]);
  });
});

describe("another version of the daemon", () => {
  const unknown = [{ no: 99, wireType: 2, data: new BinaryWriter().string("from the future").finish() }];

  it("that is newer may tell more", async () => {
    const caller = await client({
      embed: () => Object.assign(create(EmbedResponseSchema, VECTOR), { $unknown: unknown }),
      embedBatch: ({ texts }) =>
        Object.assign(create(EmbedBatchResponseSchema, { embeddings: texts.map(() => VECTOR), fingerprint: "fp" }), {
          $unknown: unknown,
        }),
      info: () => Object.assign(create(InfoResponseSchema, { vectorDim: 2 }), { $unknown: unknown }),
      health: () => ({ status: 42 as HealthResponse_Status, phase: 42 as HealthResponse_Phase, uptimeSeconds: 9n }),
      countTokens: () => {
        throw wireError(Code.OutOfRange, "OF_THE_FUTURE", { moon: "full" });
      },
    });
    assert.deepEqual(await caller.embed("a"), Float32Array.of(0.6, 0.8));
    assert.equal((await caller.embedBatch(["a", "b"])).length, 2);
    assert.deepEqual(
      Object.keys(await caller.info()).filter((name) => name.startsWith("$")),
      [],
    );
    const health = await caller.health();
    assert.deepEqual([health.status, health.phase, health.uptimeSeconds], ["UNSPECIFIED", undefined, 9]);
    const refused = await refusal(caller.countTokens(["a"]));
    assert.deepEqual([refused.code, refused.reason, refused.metadata], ["OUT_OF_RANGE", "OF_THE_FUTURE", { moon: "full" }]);
  });

  it("that is older serves what it knows, and no other vector than was asked for", async () => {
    const asked: Role[] = [];
    const caller = await client({
      embed: ({ role }) => {
        asked.push(role);
        return { vector: [1, 0] };
      },
      embedBatch: ({ texts }) => ({ embeddings: texts.map(() => ({ vector: [1, 0] })) }),
      info: () => ({ vectorDim: 2, maxBatchSize: 2 }),
    });
    assert.deepEqual(await caller.embed("a"), Float32Array.of(1, 0));
    assert.equal((await caller.embedBatch(["a", "b", "c"])).length, 3);
    const refused = await refusal(caller.embed("a", { role: "query" }));
    assert.match(refused.message, /too old: it does not know role/);
    assert.deepEqual(asked, [Role.UNSPECIFIED, Role.QUERY]);
    assert.equal((await refusal(caller.embedItems(["a"]))).reason, "UNIMPLEMENTED");
    assert.equal((await refusal(caller.countTokens(["a"]))).reason, "UNIMPLEMENTED");
  });

  it("that answers nonsense is not believed", async () => {
    const caller = await client({
      embed: () => ({}),
      embedBatch: () => ({ embeddings: [{ vector: [1] }], fingerprint: "fp" }),
      countTokens: () => ({ tokenCounts: [1] }),
      embedStream: async function* (requests) {
        for await (const _ of requests) {
          yield { results: [{ id: "666", embedding: { vector: [1] } }] };
        }
      },
    });
    assert.equal((await refusal(caller.embed("a"))).reason, "BACKEND_FAULT");
    assert.equal((await refusal(caller.embedBatch(["a", "b"]))).reason, "BACKEND_FAULT");
    assert.match((await refusal(caller.countTokens(["a", "b"]))).message, /other texts/);
    assert.match((await refusal(caller.embedStream([["a", "one"]]).next())).message, /not sent/);
  });
});

async function all(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream) {
    // It is the end that matters.
  }
}

it("leaves nothing behind in 10,000 calls of every ending", async () => {
  const caller = await client({
    embed: ({ text }) => {
      if (text === "refuse") {
        throw wireError(Code.InvalidArgument, "TEXT_TOO_LONG");
      }
      return text === "never" ? new Promise(() => {}) : VECTOR;
    },
    embedStream: async function* (requests) {
      for await (const { items } of requests) {
        yield { results: items.map(({ id }) => ({ id, embedding: VECTOR })), fingerprint: "fp" };
      }
    },
  });
  const signal = new AbortController().signal;
  const warnings: Error[] = [];
  process.on("warning", (warning) => warnings.push(warning));
  const round = async (): Promise<void> => {
    const calls: Promise<unknown>[] = Array.from({ length: 92 }, () => caller.embed("a", { signal, timeoutMs: 60_000 }));
    calls.push(
      refusal(caller.embed("refuse")),
      refusal(caller.embed("refuse")),
      refusal(caller.embed("never", { timeoutMs: 1 })),
    );
    const abort = new AbortController();
    calls.push(assert.rejects(caller.embed("never", { signal: abort.signal }), { name: "AbortError" }));
    for (let stream = 0; stream < 4; stream++) {
      calls.push(all(caller.embedStream([["a", "a"]], { signal })));
    }
    for (const stream of [caller.embedStream([["a", "a"]], { signal }), caller.embedStream([["a", "a"]])]) {
      calls.push(stream.next().then(() => stream.return()));
    }
    setImmediate(() => abort.abort());
    await Promise.all(calls);
  };
  await round();
  const [files, sockets] = [openFiles(), openSockets()];
  for (let rounds = 0; rounds < 100; rounds++) {
    await round();
  }
  assert.equal(getEventListeners(signal, "abort").length, 0);
  assert.deepEqual(warnings, []);
  await until(() => openFiles() <= files && openSockets() <= sockets, "the end of all connections");
});

describe("interceptors", () => {
  it("name the span of the application in all calls", async () => {
    const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const seen: (string | null)[] = [];
    const rpc = await client(
      {
        embed: (_, context) => {
          seen.push(context.requestHeader.get("traceparent"));
          return VECTOR;
        },
        async *embedStream(_, context) {
          seen.push(context.requestHeader.get("traceparent"));
          yield* [];
        },
      },
      {
        interceptors: [
          (next) => (request) => {
            request.header.set("traceparent", parent);
            return next(request);
          },
        ],
      },
    );
    await rpc.embed("green tea");
    for await (const _ of rpc.embedStream([])) {
      assert.fail("there is no text");
    }
    assert.equal(seen[0], parent);
    assert.ok(seen.every((header) => header === parent));
  });
});
