/** The client and the real daemon, which the client starts. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { Agent, request } from "node:http";
import { createServer } from "node:net";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { type Client, connect, type Embedding, type Health, type Outcome, type Protocol, RunedError } from "runed-client";
import { cosine, golden, Home, refusal } from "./support.js";

const home = new Home();
const phases: Health[] = [];
const clients = {} as Record<Protocol, Client>;
const PROTOCOLS: Protocol[] = ["connect", "grpc", "grpcweb"];
const { fixtures } = golden();

function embedding(outcome: Outcome | undefined): Embedding {
  assert.ok(outcome !== undefined && !(outcome instanceof RunedError), String(outcome));
  return outcome;
}

function error(outcome: Outcome | undefined): RunedError {
  assert.ok(outcome instanceof RunedError);
  return outcome;
}

before(async () => {
  for (const protocol of PROTOCOLS) {
    clients[protocol] = await connect({ home: home.path, protocol, onProgress: (health) => phases.push(health) });
  }
});

after(async () => {
  await Promise.all(PROTOCOLS.map((protocol) => clients[protocol]?.close()));
  await home.stop();
});

it("waits while the engine is started", async () => {
  const vector = await clients.connect.embed("hello world");
  assert.equal(vector.constructor, Float32Array);
  assert.ok(phases.every((health) => (health.phase === undefined) === (health.status !== "LOADING")));
  assert.equal((await clients.connect.info()).vectorDim, 384);
});

for (const protocol of PROTOCOLS) {
  describe(`over ${protocol}`, () => {
    it("gives the reference vectors, one by one and in order", async () => {
      const client = clients[protocol];
      const batch = await client.embedBatch(fixtures.map(({ text }) => text));
      assert.equal(batch.length, fixtures.length);
      for (const [index, fixture] of fixtures.entries()) {
        const one = await client.embed(fixture.text);
        assert.ok(cosine(one, fixture.vector) >= 0.9999, fixture.text);
        assert.deepEqual(batch[index], one);
      }
    });

    it("gives details, and errors by the item", async () => {
      const long = "too long ".repeat(1000);
      const outcomes = await clients[protocol].embedItems(["hello world", "", long, "half \ud83d"], { lane: "bulk" });
      assert.equal(outcomes.length, 4);
      const { vector, tokenCount, totalTokenCount, truncated, fingerprint, prompt, clusterId } = embedding(outcomes[0]);
      assert.ok(cosine(vector, fixtures[0]?.vector ?? []) >= 0.9999);
      assert.deepEqual([tokenCount, totalTokenCount, truncated, prompt, clusterId], [4, 4, false, "", undefined]);
      assert.match(fingerprint, /^fp1-/);
      assert.deepEqual([error(outcomes[1]).reason, error(outcomes[1]).metadata], ["EMPTY_TEXT", { index: "1" }]);
      assert.deepEqual(error(outcomes[2]).metadata, { index: "2", limit: "512", tokens: "2002" });
      assert.deepEqual([error(outcomes[3]).reason, error(outcomes[3]).code], ["INVALID_TEXT", "INVALID_ARGUMENT"]);
      assert.ok(!error(outcomes[2]).message.includes("too long too"), "a text stands in an error");
    });

    it("tells why the daemon refused", async () => {
      const empty = await refusal(clients[protocol].embed(" "));
      assert.deepEqual([empty.name, empty.code, empty.reason], ["RunedError", "INVALID_ARGUMENT", "EMPTY_TEXT"]);
      assert.deepEqual(empty.metadata, { index: "0" });
      assert.equal(empty.retryAfterMs, undefined);
      const dimensions = await refusal(clients[protocol].embedBatch(["a"], { dimensions: 7 }));
      assert.deepEqual(dimensions.metadata, { dimensions: "7", min: "384", max: "384" });
      const route = await refusal(clients[protocol].embedItems(["a"], { withRoute: true }));
      assert.equal(route.reason, "NO_CENTROID_SET");
      const centroids = await refusal(clients[protocol].setCentroids([[1, 0]]));
      assert.deepEqual([centroids.code, centroids.reason], ["INVALID_ARGUMENT", "BAD_CENTROIDS"]);
    });

    it("streams some thousand texts to a caller who takes his time", async () => {
      const texts = ["green tea", "black tea", "", "oolong"];
      const vectors = await clients[protocol].embedBatch(texts.filter(Boolean));
      let given = 0;
      let furthest = 0;
      let taken = 0;
      async function* items(): AsyncGenerator<[number, string]> {
        for (; given < 3000; given++) {
          furthest = Math.max(furthest, given - taken);
          yield [given, texts[given % 4] ?? ""];
        }
      }
      const seen = new Set<number>();
      for await (const [id, outcome] of clients[protocol].embedStream(items())) {
        taken += 1;
        assert.ok(!seen.has(id), `${id} came twice`);
        seen.add(id);
        if (id % 4 === 2) {
          assert.equal(error(outcome).reason, "EMPTY_TEXT");
        } else {
          assert.deepEqual(embedding(outcome).vector, vectors[[0, 1, 0, 2][id % 4] ?? 0]);
        }
        if (taken % 10 === 0) {
          await turn();
        }
      }
      assert.equal(seen.size, 3000);
      assert.ok(furthest <= 1200, `${furthest} texts were taken ahead of the caller`);
    });

    it("counts tokens", async () => {
      assert.deepEqual(await clients[protocol].countTokens(["hello world", "7 ".repeat(5000)]), [4, 5002]);
    });
  });
}

it("splits what is more than one request may hold", async () => {
  const texts = Array.from({ length: 2100 }, (_, index) => fixtures[index % 3]?.text ?? "");
  const vectors = await clients.connect.embedBatch(texts);
  assert.equal(vectors.length, 2100);
  assert.deepEqual(vectors[2099], vectors[2]);
  texts[2099] = "";
  const refused = await refusal(clients.connect.embedBatch(texts));
  assert.deepEqual(refused.metadata, { index: "2099" });
  assert.match(refused.message, /starts with text 2048/);
  const huge = await refusal(clients.connect.embed("x".repeat(40 * 1024 * 1024)));
  assert.deepEqual([huge.reason, huge.metadata.limit !== undefined], ["REQUEST_TOO_LARGE", true]);
});

it("does nothing for no texts", async () => {
  assert.deepEqual(await clients.connect.embedBatch([]), []);
  assert.deepEqual(await clients.connect.embedItems(new Set<string>()), []);
  assert.deepEqual(await clients.connect.countTokens([]), []);
  for await (const _ of clients.connect.embedStream([])) {
    assert.fail("there was no text");
  }
});

it("refuses options that cannot be used before it sends anything", async () => {
  const { connect: client } = clients;
  assert.equal((await refusal(client.embed("a", { instruction: "Find" }))).reason, "BAD_INSTRUCTION");
  assert.equal((await refusal(client.embed("a", { dimensions: 1.5 }))).reason, "BAD_DIMENSIONS");
  assert.equal((await refusal(client.embed("a", { timeoutMs: 0 }))).reason, "INVALID_REQUEST");
  const role = await refusal(client.embed("a", JSON.parse('{"role": "constructor"}')));
  assert.deepEqual([role.reason, role.metadata], ["INVALID_REQUEST", { field: "role" }]);
  await assert.rejects(client.embedBatch("one text"), TypeError);
  await assert.rejects(client.embed(JSON.parse("7")), TypeError);
});

it("gives up when its time is over, and tells the whole time", async () => {
  const texts = Array.from({ length: 500 }, (_, index) => `${index} `.repeat(200));
  const late = await refusal(clients.connect.embedBatch(texts, { timeoutMs: 40 }));
  assert.deepEqual([late.reason, late.code], ["DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"]);
  assert.match(late.message, /within 40 ms/);
  const stream = clients.connect.embedStream(
    texts.map((text) => [text, text]),
    { timeoutMs: 1 },
  );
  assert.match((await refusal(stream.next())).message, /no embedding of the stream came within 1 ms/);
});

it("breaks off with the reason of the signal, and goes on to serve", async () => {
  const texts = Array.from({ length: 500 }, (_, index) => `abort ${index} `.repeat(100));
  for (const protocol of PROTOCOLS) {
    const abort = new AbortController();
    const reason = new Error("enough");
    const call = clients[protocol].embedBatch(texts, { signal: abort.signal });
    await clients[protocol].health();
    abort.abort(reason);
    await assert.rejects(call, reason);
    await assert.rejects(clients[protocol].embed("a", { signal: abort.signal }), reason);
  }
  const abort = new AbortController();
  await assert.rejects(
    async () => {
      for await (const _ of clients.connect.embedStream(
        texts.map((text) => [text, text]),
        { signal: abort.signal },
      )) {
        abort.abort();
      }
    },
    { name: "AbortError" },
  );
  assert.equal((await clients.connect.embed("hello world")).length, 384);
});

it("drops a stream that the caller leaves, and closes his iterable", async () => {
  let closed = false;
  async function* items(): AsyncGenerator<[number, string]> {
    try {
      for (let id = 0; ; id++) {
        yield [id, `leave ${id}`];
      }
    } finally {
      closed = true;
    }
  }
  for await (const [, outcome] of clients.connect.embedStream(items())) {
    assert.equal(embedding(outcome).vector.length, 384);
    break;
  }
  assert.ok(closed);
  for (let health = await clients.connect.health(); health.inFlightRequests > 0; health = await clients.connect.health()) {
    await turn();
  }
});

it("hands on what the caller's iterable throws", async () => {
  async function* items(): AsyncGenerator<[string, string]> {
    yield ["a", "one"];
    throw new Error("no more rows");
  }
  await assert.rejects(async () => {
    for await (const _ of clients.connect.embedStream(items())) {
      // Whatever came before it.
    }
  }, /no more rows/);
  await assert.rejects(clients.connect.embedStream(JSON.parse('["ab"]')).next(), TypeError);
});

it("answers a text of a slow iterable before the next one comes", async () => {
  let answered: (() => void) | undefined;
  async function* items(): AsyncGenerator<[number, string]> {
    for (let id = 0; id < 5; id++) {
      yield [id, `slow ${id}`];
      await new Promise<void>((resolve) => {
        answered = resolve;
      });
    }
  }
  const ids: number[] = [];
  for await (const [id] of clients.connect.embedStream(items())) {
    ids.push(id);
    answered?.();
  }
  assert.deepEqual(ids, [0, 1, 2, 3, 4]);
});

it("tells nearest centroids", async () => {
  const vectors = fixtures.slice(0, 4).map(({ vector }) => vector);
  const set = await clients.connect.setCentroids(vectors, { preset: "test" });
  assert.equal(set.nlist, 4);
  assert.match(set.version, /^sha256:[0-9a-f]{64}$/);
  assert.deepEqual(await clients.grpc.setCentroids(vectors, { preset: "test", version: set.version }), set);
  const outcomes = await clients.grpcweb.embedItems(
    fixtures.slice(0, 4).map(({ text }) => text),
    { withRoute: true },
  );
  assert.deepEqual(
    outcomes.map((outcome) => embedding(outcome).clusterId),
    [0, 1, 2, 3],
  );
  assert.equal(embedding(outcomes[0]).centroidSetVersion, set.version);
  assert.equal((await refusal(clients.connect.setCentroids([[1], [1, 2]]))).reason, "BAD_CENTROIDS");
});

it("adds at most 3 ms to what the daemon takes for a text that it knows", async () => {
  const agent = new Agent({ keepAlive: true });
  const path = "/runed.v1.RunedService/Embed";
  const headers = { "content-type": "application/json" };
  /** Calls the daemon with as little as possible. */
  const bare = () =>
    new Promise<void>((done, failed) => {
      const call = request(
        { socketPath: join(home.path, "embedding.sock"), agent, path, method: "POST", headers },
        (answer) => {
          answer.resume().on("end", done);
        },
      );
      call.on("error", failed).end('{"text": "hello world"}');
    });
  const times: Record<"bare" | "client", number[]> = { bare: [], client: [] };
  for (let round = 0; round < 200; round++) {
    for (const [name, call] of [
      ["bare", bare],
      ["client", () => clients.connect.embed("hello world")],
    ] as const) {
      const began = performance.now();
      await call();
      times[name].push(performance.now() - began);
    }
  }
  agent.destroy();
  // The tenth of the calls that were disturbed least, since other programs run beside a test.
  const [least, ours] = [times.bare, times.client].map((all) => all.sort((a, b) => a - b)[20] ?? 0);
  assert.ok((ours ?? 0) - (least ?? 0) <= 3, `${ours} ms, and ${least} ms without the client`);
});

it("takes more calls at a time than the daemon does on one connection", async () => {
  const vectors = await Promise.all(Array.from({ length: 400 }, () => clients.connect.embed("hello world")));
  assert.ok(vectors.every((vector) => vector.length === 384));
});

it("says so when somebody else listens on the socket, and the process lives on", async () => {
  const path = join(home.path, "foreign.sock");
  const server = createServer((socket) => {
    socket.on("error", () => {}); // the client hangs up
    socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
  });
  server.listen(path);
  await once(server, "listening");
  for (let round = 0; round < 100; round++) {
    const client = await connect({ socketPath: path });
    const refused = await refusal(client.health());
    assert.deepEqual([refused.reason, refused.code], ["DAEMON_UNAVAILABLE", "UNAVAILABLE"]);
    assert.match(refused.message, /another program's socket/);
    await client.close();
  }
  server.close();
});
