/** How the client finds, starts and loses the daemon, and how a process ends that used it. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { ConnectError, createClient } from "@connectrpc/connect";
import { connect, createRunedTransport, type Protocol, type RunedError } from "runed-client";
import { RunedService } from "runed-client/proto";
import { Home, refusal, run, shortHome, TINY_MODEL, until } from "./support.js";

const short = shortHome();
/** Too long for a socket, so that daemon and client have to agree on the alias. */
const home = new Home({ RUNED_MODEL: TINY_MODEL }, join(short, "a-long-name-of-a-directory".repeat(4)));

after(async () => {
  await home.stop();
  rmSync(short, { recursive: true, force: true });
});

/** Runs a program that uses the package in a process of its own; returns its output. */
async function script(source: string, variables: Record<string, string> = {}): Promise<string> {
  const env = { ...process.env, RUNED_HOME: home.path, ...variables };
  const program = `import { connect } from "runed-client";\n${source}`;
  const { stdout } = await run(process.execPath, ["--input-type=module", "--eval", program], { env, timeout: 60_000 });
  return stdout.trim();
}

describe("a daemon that the client starts", { concurrency: false }, () => {
  it("is started once by several at a time, at the alias of a long path", async () => {
    const clients = await Promise.all(Array.from({ length: 4 }, () => connect({ home: home.path })));
    const pids = await Promise.all(clients.map(async (client) => (await client.health()).pid));
    assert.equal(new Set(pids).size, 1);
    const digest = createHash("sha256").update(join(home.path, "embedding.sock")).digest("hex").slice(0, 32);
    assert.equal(clients[0]?.socketPath, `/tmp/runed-${process.getuid?.()}/runed-${digest}.sock`);
    assert.equal((await clients[0].embed("hello world")).length, 64);
    await Promise.all(clients.map((client) => client.close()));
  });

  it("keeps no process alive, whether the client is closed or forgotten", async () => {
    const embed = 'const c = await connect(); console.log((await c.embed("hello world")).length);';
    assert.equal(await script(`${embed} await c.close();`), "64");
    assert.equal(await script(embed), "64");
    const stream = 'for await (const [id] of c.embedStream([["a", "one"]])) console.log(id);';
    assert.equal(await script(`const c = await connect({ protocol: "grpc" }); ${stream}`), "a");
  });

  it("is started again, once, after a kill that all protocols meet", async () => {
    const protocols = ["connect", "grpc", "grpcweb"] as const;
    const clients = await Promise.all(protocols.map((protocol) => connect({ home: home.path, protocol, timeoutMs: 60_000 })));
    const pids = await Promise.all(clients.map(async (client) => (await client.health()).pid));
    process.kill(pids[0] ?? 0, "SIGKILL");
    const vectors = await Promise.all(clients.map((client) => client.embed("after the kill")));
    assert.deepEqual(
      vectors.map((vector) => vector.length),
      [64, 64, 64],
    );
    const others = await Promise.all(clients.map(async (client) => (await client.health()).pid));
    assert.equal(new Set([...pids, ...others]).size, 2);
    await Promise.all(clients.map((client) => client.close()));
  });

  it("is started again in the middle of a stream, and every text has one outcome", async () => {
    const client = await connect({ home: home.path, timeoutMs: 60_000 });
    const { pid } = await client.health();
    const seen: number[] = [];
    const items = Array.from({ length: 300 }, (_, id) => [id, `kill in the middle ${id}`] as const);
    for await (const [id, outcome] of client.embedStream(items)) {
      if (seen.push(id) === 10) {
        process.kill(pid, "SIGKILL");
      }
      assert.ok(!(outcome instanceof Error), String(outcome));
    }
    assert.deepEqual(
      seen.sort((a, b) => a - b),
      items.map(([id]) => id),
    );
    assert.notEqual((await client.health()).pid, pid);
    await client.close();
  });

  it("is started again after it was stopped", async () => {
    const client = await connect({ home: home.path });
    const before = await client.health();
    await client.shutdown();
    assert.equal((await client.embed("hello world")).length, 64);
    assert.notEqual((await client.health()).pid, before.pid);
    await client.close();
  });

  it("gets the collector of the application, and not its name", { skip: process.platform !== "linux" }, async () => {
    await run("runed", ["stop"], { env: { ...process.env, RUNED_HOME: home.path } });
    const variables = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:9", OTEL_SERVICE_NAME: "shop" };
    const pid = await script("const c = await connect(); console.log((await c.health()).pid); await c.close();", variables);
    const environment = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
    assert.ok(environment.includes("OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:9"));
    assert.ok(!environment.includes("OTEL_SERVICE_NAME=shop"));
    await run("runed", ["stop"], { env: { ...process.env, RUNED_HOME: home.path } });
  });

  it("is started by the generated client, over each protocol", async () => {
    const watcher = await connect({ home: home.path });
    for (const protocol of ["connect", "grpc", "grpcweb"] as Protocol[]) {
      const service = createClient(RunedService, createRunedTransport({ home: home.path, protocol }));
      const { pid } = await service.health({});
      await run("runed", ["stop"], { env: { ...process.env, RUNED_HOME: home.path } });
      assert.notEqual((await service.health({})).pid, pid);
      await watcher.waitUntilReady();
      assert.equal((await service.embed({ text: "hello world" })).vector.length, 64);
      const items = [{ items: [{ id: "a", text: "one" }] }];
      for await (const { results } of service.embedStream(
        (async function* () {
          yield* items;
        })(),
      )) {
        assert.equal(results[0]?.id, "a");
      }
    }
    await watcher.close();
    const none = createClient(RunedService, createRunedTransport({ home: short, spawn: false }));
    await assert.rejects(none.health({}), (error) => error instanceof ConnectError && /runed ensure/.test(error.message));
    assert.throws(() => createRunedTransport({ home: short, socketPath: short }), TypeError);
    const source = `
      const { createClient } = await import("@connectrpc/connect");
      const { createRunedTransport } = await import("runed-client");
      const { RunedService } = await import("runed-client/proto");
      console.log((await createClient(RunedService, createRunedTransport()).embed({ text: "hello world" })).vector.length);`;
    assert.equal(await script(source), "64", "it keeps its process alive");
  });

  it("refuses calls of a closed client, and breaks off those under way", async () => {
    const client = await connect({ home: home.path });
    await client.waitUntilReady();
    const call = client.embedBatch(Array.from({ length: 500 }, (_, index) => `under way ${index}`.repeat(20)));
    await client.health();
    await client.close();
    assert.equal((await refusal(call)).reason, "CLOSED");
    assert.equal((await refusal(client.embed("hello"))).reason, "CLOSED");
    assert.equal((await refusal(client.embedStream([["a", "b"]]).next())).reason, "CLOSED");
    {
      await using other = await connect({ home: home.path });
      await other.info();
    }
  });

  it("is not started where the caller looks after it himself", async () => {
    const client = await connect({ home: home.path, spawn: false });
    const { pid } = await client.health();
    process.kill(pid, "SIGKILL");
    const refused = await refusal(client.embed("hello world"));
    assert.deepEqual([refused.reason, refused.code], ["DAEMON_UNAVAILABLE", "UNAVAILABLE"]);
    await client.close();
    // A dying daemon closes its connections a moment before its listening socket.
    let reason = "";
    await until(async () => {
      const other = await connect({ home: home.path, spawn: false }).catch((error: RunedError) => {
        reason = error.reason;
      });
      await other?.close();
      return reason !== "";
    }, "the end of the listening socket");
    assert.equal(reason, "DAEMON_UNAVAILABLE");
    assert.equal((await refusal(connect({ socketPath: join(short, "none.sock") }))).reason, "DAEMON_UNAVAILABLE");
    await assert.rejects(connect({ home: short, socketPath: short }), TypeError);
  });

  it("is absent where it ends before it accepts the connection", async () => {
    const path = join(short, "ends.sock");
    const source =
      "import select, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); " +
      "print(1, flush=True); select.select([s], [], []); s.close()";
    const listener = spawn("python3", ["-c", source, path], { stdio: ["ignore", "pipe", "inherit"] });
    await once(listener.stdout, "data");
    // The listener ends between the connect and the moment at which Node.js looks for its outcome: each round of the event loop
    // pauses before both of its phases that may do so.
    const pause = () => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200);
    let immediate = setImmediate(function again() {
      pause();
      immediate = setImmediate(again);
    });
    const timer = setInterval(pause, 1);
    const refused = await refusal(connect({ socketPath: path })).finally(() => {
      clearInterval(timer);
      clearImmediate(immediate);
    });
    assert.equal(refused.reason, "DAEMON_UNAVAILABLE");
  });
});

describe("the program that starts the daemon", () => {
  const empty = shortHome();
  const bin = join(empty, "bin");
  const environment = { ...process.env };

  after(() => {
    process.env = environment;
    rmSync(empty, { recursive: true, force: true });
  });

  /** Puts a program in a place; it says what it was asked, and answers as it is told. */
  function program(path: string, answer: string, exit = 0): void {
    mkdirSync(join(path, ".."), { recursive: true });
    writeFileSync(path, `#!/bin/sh\necho "$RUNED_HOME $*" >> "${empty}/asked"\necho '${answer}'\nexit ${exit}\n`);
    chmodSync(path, 0o755);
  }

  it("is kept stopped: says until when", async () => {
    const refusing = join(empty, "kept", "runed");
    program(refusing, '{"error": {"reason": "KEPT_STOPPED", "message": "it is kept stopped until 14:05"}}', 1);
    writeFileSync(join(empty, "config.json"), JSON.stringify({ version: 1, runed_binary: refusing }));
    const refused = await refusal(connect({ home: empty }));
    assert.deepEqual([refused.reason, refused.code], ["KEPT_STOPPED", "UNAVAILABLE"]);
    assert.match(refused.message, /until 14:05/);
    rmSync(join(empty, "config.json"));
  });

  it("is missing: says where it was looked for and what to do", async () => {
    process.env.PATH = join(empty, "nowhere");
    const refused = await refusal(connect({ home: empty }));
    assert.deepEqual([refused.reason, refused.code], ["DAEMON_START_FAILED", "UNAVAILABLE"]);
    assert.match(refused.message, /pip install runed/);
    writeFileSync(join(empty, "config.json"), JSON.stringify({ version: 1, runed_binary: join(empty, "none") }));
    assert.match((await refusal(connect({ home: empty }))).message, /none, which config.json names as runed_binary/);
    rmSync(join(empty, "config.json"));
  });

  it("is looked for in config.json, then on the PATH, then in the home; its error is told", async () => {
    const told = (reason: string) => JSON.stringify({ error: { reason, message: "it is so" } });
    program(join(bin, "runed"), told("IN_THE_HOME"), 1);
    assert.equal((await refusal(connect({ home: empty, timeoutMs: 2000 }))).reason, "IN_THE_HOME");
    program(join(empty, "path", "runed"), told("ON_THE_PATH"), 2);
    process.env.PATH = `${join(empty, "path")}:${environment.PATH}`;
    assert.equal((await refusal(connect({ home: empty }))).reason, "ON_THE_PATH");
    program(join(empty, "other"), told("IN_THE_CONFIG"), 1);
    writeFileSync(join(empty, "elsewhere.json"), JSON.stringify({ runed_binary: join(empty, "other") }));
    process.env.RUNED_CONFIG = join(empty, "elsewhere.json");
    const refused = await refusal(connect({ home: empty }));
    assert.deepEqual([refused.reason, refused.message], ["IN_THE_CONFIG", "it is so"]);
    program(join(empty, "other"), "no JSON", 1);
    assert.match((await refusal(connect({ home: empty }))).message, /gave no answer/);
  });

  it("is ended soon after the limit of the call, also if it hangs", async () => {
    writeFileSync(join(empty, "other"), `#!/bin/sh\ntrap '' TERM\nsleep 8 &\nwhile :; do sleep 0.05; done\n`);
    const began = performance.now();
    assert.match((await refusal(connect({ home: empty, timeoutMs: 500 }))).message, /gave no answer/);
    assert.ok(performance.now() - began < 3000, "a second and a half, and a busy machine");
  });

  it("is ended when the caller gives up", async () => {
    writeFileSync(join(empty, "other"), `#!/bin/sh\ntouch "${empty}/began"\nexec sleep 60\n`);
    const abort = new AbortController();
    const connecting = connect({ home: empty, signal: abort.signal });
    const began = performance.now();
    while (!existsSync(join(empty, "began"))) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    abort.abort();
    await assert.rejects(connecting, { name: "AbortError" });
    assert.ok(performance.now() - began < 10_000);
  });
});

it("trusts no alias directory that others can enter", async () => {
  // The real one stays as it is: the source is told another user id.
  const source = `
    process.getuid = () => 4242424242;
    import("node:fs").then(({ mkdirSync }) => mkdirSync("/tmp/runed-4242424242", { recursive: true }));
    await new Promise((resolve) => setImmediate(resolve));
    await connect().catch((error) => console.log(error.reason));`;
  try {
    assert.equal(await script(source), "FOREIGN_PATH");
  } finally {
    rmSync("/tmp/runed-4242424242", { recursive: true });
  }
  assert.ok(readdirSync(short).length > 0);
});
