/** The client against tests/conformance/policy.json, which the clients of all languages follow. */

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once as event } from "node:events";
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createServer, type ServerHttp2Session, type ServerHttp2Stream } from "node:http2";
import { createServer as listenOn, Socket } from "node:net";
import { userInfo } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { after, afterEach, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import { codeFromString } from "@connectrpc/connect/protocol-connect";
import {
  type Client,
  type ConnectOptions,
  connect,
  type EmbedOptions,
  type Outcome,
  type Protocol,
  RunedError,
} from "runed-client";
import { kindOf } from "#dist/errors.js";
import { connectToOwn } from "#dist/peer.js";
import * as policy from "#dist/policy.js";
import { Target } from "#dist/target.js";
import { isOlder, VERSION } from "#dist/version.js";
import { Deadline, Patience } from "#dist/waiting.js";
import { EmbedResponseSchema, HealthResponse_Phase, HealthResponse_Status, type RunedService } from "#gen/runed/v1/runed_pb.js";
import { Code, ROOT, refusal, serve, shortHome, wireError } from "./support.js";

type Methods = Partial<ServiceImpl<typeof RunedService>>;
type Table<Row> = { rows: Row[] };

const {
  constants,
  pauses,
  reasons,
  codes,
  bootstrap,
  room,
  places,
  homes,
  dial,
  ensure,
  versions,
  rules,
}: {
  constants: { name: string; value: number }[];
  pauses: Table<{ told: number; refusals: number; least: number; most: number }>;
  reasons: Table<{ reason: string; code: string; then: "final" | "retry" | "follow" | "wait" }>;
  codes: Table<{ code: string; retry_info: boolean; reason: string }>;
  bootstrap: Table<{
    name: string;
    infos: (number | string)[];
    healths: { status: string; phase?: string; bytes_done?: number; bytes_total?: number; message: string }[];
    info: { vector_dim?: number; reason?: string; metadata?: Record<string, string> };
    embedding: { reason?: string };
  }>;
  room: Table<{ call: string; options: EmbedOptions; room: number }>;
  places: Table<{ environment: Record<string, string>; home?: string; socket_path?: string; socket?: string; reason?: string }>;
  homes: Table<{ lay: string[]; home?: string; reason: string; unsaid?: string }>;
  dial: Table<{ found: string; reason: string }>;
  ensure: Table<{ output: string; exit: number; reason: string; says: string }>;
  versions: Table<{ daemon: string; client: string; older: boolean }>;
  rules: Table<{ name: string; languages?: string[] }>;
} = JSON.parse(readFileSync(join(ROOT, "tests", "conformance", "policy.json"), "utf8"));

const folder = shortHome();
let sockets = 0;
const nextSocket = () => join(folder, `${++sockets}.sock`);
const endings: (() => void | Promise<void>)[] = [];
const environment = { ...process.env };

afterEach(async () => {
  for (const end of endings.splice(0)) {
    await end();
  }
  process.env = { ...environment };
});

after(() => rmSync(folder, { recursive: true }));

const VECTOR = { vector: [1, 0], fingerprint: "fp" };

/** Returns a client of a daemon with these methods. A method that is missing answers well. */
async function client(methods: Methods, options: ConnectOptions = {}): Promise<Client> {
  const well: Methods = {
    info: () => ({ vectorDim: 2 }),
    health: () => ({ status: HealthResponse_Status.OK }),
    embed: () => VECTOR,
    embedStream: async function* (requests) {
      for await (const { items } of requests) {
        yield { results: items.map(({ id }) => ({ id, embedding: VECTOR })), fingerprint: "fp" };
      }
    },
  };
  const socketPath = nextSocket();
  endings.push(await serve(socketPath, { ...well, ...methods }));
  const result = await connect({ socketPath, ...options });
  endings.unshift(() => result.close());
  return result;
}

/** Makes a method that fails once and then answers. */
function once<T>(error: Error, answer: T): () => T {
  let failed = false;
  return () => {
    if (!failed) {
      failed = true;
      throw error;
    }
    return answer;
  };
}

/** Calls of every kind that name a model. */
const namedCalls: ((caller: Client) => Promise<unknown>)[] = [
  (caller) => caller.info({ model: "m" }),
  (caller) => caller.waitUntilReady({ model: "m" }),
  (caller) => caller.health({ model: "m" }),
  (caller) => caller.warmUp({ model: "m" }),
  (caller) => caller.embed("text", { model: "m" }),
  (caller) => caller.embedBatch(["text"], { model: "m" }),
  (caller) => caller.embedItems(["text"], { model: "m" }),
  (caller) => streamed(caller, { model: "m" }),
  (caller) => caller.countTokens(["text"], { model: "m" }),
  (caller) => caller.rerank("query", ["text"], { model: "m" }),
  (caller) => caller.setCentroids([[1, 0]], { model: "m" }),
];

/** Streams one text and returns its outcome. */
async function streamed(caller: Client, options: EmbedOptions = {}): Promise<Outcome> {
  for await (const [, outcome] of caller.embedStream([["a", "text"]], options)) {
    return outcome;
  }
  assert.fail("there was no outcome");
}

async function caught(outcome: Promise<Outcome>): Promise<Outcome> {
  return await outcome.catch((error: unknown) => {
    assert.ok(error instanceof RunedError, String(error));
    return error;
  });
}

function wireCode(name: string): Code {
  return codeFromString(name.toLowerCase()) as Code;
}

it("has the constants", () => {
  const { MAX_SOCKET_PATH, ...own } = policy;
  const named: Record<string, number> = { socket_path_bytes: MAX_SOCKET_PATH };
  for (const [name, value] of Object.entries(own)) {
    const bare = name.toLowerCase();
    if (bare.endsWith("_ms")) {
      named[bare.replace(/_ms$/, "_seconds")] = value / 1000;
    } else {
      named[bare] = value;
    }
  }
  const renamed: Record<string, string> = {
    item_overhead: "item_overhead_bytes",
    text_overhead: "text_overhead_bytes",
    large_text: "large_text_bytes",
    fallback_texts: "fallback_batch_texts",
    fallback_bytes: "fallback_request_bytes",
    centroid_bytes: "centroid_message_bytes",
  };
  assert.deepEqual(
    Object.fromEntries(Object.entries(named).map(([name, value]) => [renamed[name] ?? name, value])),
    Object.fromEntries(constants.map(({ name, value }) => [name, value])),
  );
});

it("pauses", () => {
  for (const { told, refusals, least, most } of pauses.rows) {
    const drawn = Array.from({ length: 2000 }, () => {
      const patience = new Patience(new Deadline(policy.RETRY_PATIENCE_MS * 1000, undefined));
      const error = new RunedError("QUEUE_FULL", "full", { retryAfterMs: told * 1000 });
      for (let refused = 0; refused < refusals; refused++) {
        patience.pause(error);
      }
      return patience.pause(error) / 1000;
    });
    const [shortest, longest] = [Math.min(...drawn), Math.max(...drawn)];
    const rounding = 1e-6;
    assert.ok(shortest >= least - rounding && longest <= most + rounding, `${told} s told: ${shortest} to ${longest}`);
    assert.ok(longest - shortest > 0.9 * (most - least), "chance does not draw");
  }
});

describe("an error with a reason that the client knows", () => {
  for (const { reason, code, then } of reasons.rows) {
    it(reason, async () => {
      const failure = () => wireError(wireCode(code), reason, { a: "b" }, 0.001);
      const check = (outcome: Outcome, repeated: boolean) => {
        if (repeated) {
          assert.ok(!(outcome instanceof RunedError), String(outcome));
        } else {
          assert.ok(outcome instanceof RunedError, "it was not told");
          assert.deepEqual([outcome.reason, outcome.code, outcome.metadata], [reason, code, { a: "b" }]);
        }
      };
      let broken = false;
      const caller = await client({
        embed: once(failure(), VECTOR),
        embedStream: async function* (requests) {
          for await (const { items } of requests) {
            if (items.length > 0 && !broken) {
              broken = true;
              throw failure();
            }
            yield { results: items.map(({ id }) => ({ id, embedding: VECTOR })), fingerprint: "fp" };
          }
        },
      });
      const repeated = then === "retry" || then === "wait";
      const one = await caller.embed("text").catch((error: RunedError) => error);
      check(one instanceof RunedError ? one : ({} as Outcome), repeated);
      check(await caught(streamed(caller)), repeated || then === "follow");
    });
    if (then === "retry") {
      it(`${reason} without RetryInfo`, async () => {
        const caller = await client({ embed: once(wireError(wireCode(code), reason), VECTOR) });
        assert.equal((await refusal(caller.embed("text"))).reason, reason);
      });
    }
  }
});

describe("an error whose reason is missing or unknown", () => {
  for (const protocol of ["connect", "grpc", "grpcweb"] as Protocol[]) {
    for (const { code, retry_info: retryInfo, reason } of codes.rows) {
      it(`${code}${retryInfo ? " with RetryInfo" : ""}, over ${protocol}`, async () => {
        for (const told of ["", "OF_TOMORROW"]) {
          const failure = (seconds: number) => wireError(wireCode(code), told, {}, retryInfo ? seconds : undefined);
          if (retryInfo) {
            const caller = await client({ embed: once(failure(0.001), VECTOR) }, { protocol });
            assert.equal((await caller.embed("text")).length, 2);
          }
          const caller = await client(
            {
              embed: once(failure(3600), VECTOR),
              // biome-ignore lint/correctness/useYield: it fails before it answers
              embedStream: async function* () {
                throw failure(3600);
              },
            },
            { protocol },
          );
          for (const error of [await refusal(caller.embed("text")), await caught(streamed(caller))]) {
            assert.ok(error instanceof RunedError);
            assert.deepEqual([error.reason, error.code, kindOf(error)], [told || reason, code, reason]);
          }
        }
      });
    }
  }
});

describe("in a home that is not ready", () => {
  for (const { name, infos, healths, info, embedding } of bootstrap.rows) {
    it(name, async () => {
      /** Until the healths are used up, the daemon is not ready. */
      const start = () => {
        let [asked, looked] = [0, 0];
        return client({
          info: () => {
            const answer = infos[Math.min(asked++, infos.length - 1)];
            if (typeof answer === "string") {
              throw wireError(Code.FailedPrecondition, answer);
            }
            return { vectorDim: answer ?? 0 };
          },
          health: () => {
            const health = healths[looked++];
            return health === undefined
              ? { status: HealthResponse_Status.OK }
              : {
                  status: HealthResponse_Status[health.status as keyof typeof HealthResponse_Status],
                  phase: HealthResponse_Phase[(health.phase ?? "UNSPECIFIED") as keyof typeof HealthResponse_Phase],
                  bytesDone: BigInt(health.bytes_done ?? 0),
                  bytesTotal: BigInt(health.bytes_total ?? 0),
                  message: health.message,
                };
          },
          embed: () => {
            if (looked < healths.length) {
              throw wireError(Code.FailedPrecondition, "BOOTSTRAPPING");
            }
            return VECTOR;
          },
        });
      };
      if (info.reason === undefined) {
        assert.equal((await (await start()).info()).vectorDim, info.vector_dim);
      } else {
        const { reason, metadata, message } = await refusal((await start()).info());
        assert.equal(reason, info.reason);
        for (const [key, value] of Object.entries(info.metadata ?? {})) {
          assert.equal(metadata[key], value);
          assert.ok(message.includes(value), message);
        }
      }
      const caller = await start();
      if (embedding.reason === undefined) {
        assert.equal((await caller.embed("text")).length, 2);
      } else {
        assert.equal((await refusal(caller.embed("text"))).reason, embedding.reason);
      }
      if (info.reason === "BOOTSTRAPPING") {
        assert.equal((await (await start()).waitUntilReady()).vectorDim, 2);
      }
    });
  }
});

describe("a request has room", () => {
  for (const { call, options, room: limit } of room.rows) {
    it(`of ${limit} bytes for texts in ${call} with ${JSON.stringify(options)}`, async () => {
      const caller = await client({ info: () => ({ maxRequestBytes: 1000n }) });
      const large = "x".repeat(2000);
      const calls: Record<string, () => Promise<unknown>> = {
        embed_batch: () => caller.embedBatch([large], options),
        embed_items: async () => (await caller.embedItems([large], options))[0],
        count_tokens: () => caller.countTokens([large], options),
        embed_stream: async () => (await caller.embedStream([["a", large]], options).next()).value?.[1],
      };
      const error = await calls[call]?.().catch((thrown: unknown) => thrown);
      assert.ok(error instanceof RunedError, String(error));
      assert.deepEqual([error.reason, error.metadata.limit], ["REQUEST_TOO_LARGE", String(limit)]);
    });
  }
});

describe("the daemon is looked for", () => {
  const { homedir: own, username: user, uid } = userInfo();
  const filled = (text: string) =>
    text.replace("$own", own).replace("$user", user).replace("$uid", String(uid)).replace("$here", process.cwd());
  for (const { environment: variables, home, socket_path: path, socket, reason } of places.rows) {
    it(`in ${JSON.stringify({ ...variables, home, path })}`, () => {
      delete process.env.HOME;
      delete process.env.RUNED_HOME;
      for (const [name, value] of Object.entries(variables)) {
        process.env[name] = filled(value);
      }
      const find = () => new Target({ home, socketPath: path }).socket;
      if (reason === undefined) {
        assert.equal(find(), filled(socket ?? ""));
      } else {
        assert.throws(find, (error) => error instanceof RunedError && error.reason === reason);
      }
    });
  }
});

describe("a home is checked that was laid by", () => {
  for (const [index, { lay, home = "home", reason, unsaid }] of homes.rows.entries()) {
    const skip = lay.join().includes("12345") && process.geteuid?.() !== 0 && "only root can give a file to another user";
    it(`${lay.join(", ") || "nothing"} at ${home}`, { skip }, async () => {
      const place = join(folder, `homes${index}`);
      mkdirSync(place);
      chmodSync(place, 0o700);
      for (const step of lay) {
        const [kind = "", name = "", value = ""] = step.split(" ");
        const path = join(place, name);
        const steps: Record<string, () => void> = {
          directory: () => {
            mkdirSync(path);
            chmodSync(path, Number.parseInt(value, 8));
          },
          file: () => {
            writeFileSync(path, "");
            chmodSync(path, Number.parseInt(value || "600", 8));
          },
          link: () => symlinkSync(value, path),
          owner: () => lchownSync(path, Number(value), -1),
          group: () => lchownSync(path, -1, Number(value)),
          trust: () => {
            process.env.RUNED_TRUST_PARENTS = "1";
            endings.push(() => {
              delete process.env.RUNED_TRUST_PARENTS;
            });
          },
          switch: () => {
            const own = process.getegid?.() ?? 0;
            process.setegid?.(Number(value));
            endings.push(() => process.setegid?.(own));
          },
        };
        steps[kind]?.();
      }
      const config = join(place, home, "config.json");
      const refused = reason === "FOREIGN_PATH";
      const isDirectory = existsSync(`${join(place, home)}/.`);
      if (refused && isDirectory && lstatSync(config, { throwIfNoEntry: false }) === undefined) {
        writeFileSync(join(place, "program"), `#!/bin/sh\ntouch ${join(place, "ran")}\n`, { mode: 0o755 });
        writeFileSync(config, JSON.stringify({ version: 1, runed_binary: join(place, "program") }), { mode: 0o644 });
      }
      const error = await refusal(connect({ home: join(place, home), spawn: refused }));
      assert.equal(error.reason, reason);
      assert.ok(unsaid === undefined || !error.message.includes(unsaid));
      assert.equal(existsSync(join(place, "ran")), false);
    });
  }
});

describe("in the place of the socket is", () => {
  /** Binds a UNIX socket of any type, which Node.js cannot, and ends with its standard input. */
  const bind = async (type: string, path: string) => {
    const source = `import socket, sys; s = socket.socket(socket.AF_UNIX, socket.${type}); s.bind(sys.argv[1]); print(1, flush=True); input()`;
    const binder = spawn("python3", ["-c", source, path], { stdio: ["pipe", "pipe", "ignore"] });
    endings.unshift(async () => {
      binder.stdin.end();
      await event(binder, "exit");
    });
    await event(binder.stdout, "data");
  };
  const lay: Record<string, (directory: string) => void | Promise<void>> = {
    nothing: () => {},
    "a socket that nobody listens on": (directory) => bind("SOCK_STREAM", join(directory, "s")),
    "a file in place of the directory": (directory) => {
      rmSync(directory, { recursive: true });
      writeFileSync(directory, "");
    },
    "a datagram socket": (directory) => bind("SOCK_DGRAM", join(directory, "s")),
  };
  for (const [index, { found, reason }] of dial.rows.entries()) {
    it(found, async () => {
      const directory = join(folder, `dial${index}`);
      mkdirSync(directory);
      await lay[found]?.(directory);
      assert.ok(found in lay, "there is no such place");
      assert.equal((await refusal(connect({ socketPath: join(directory, "s") }))).reason, reason);
    });
  }
});

/** Makes a home whose `runed` is a shell script. */
function homeOf(script: string): string {
  const home = shortHome();
  endings.push(() => rmSync(home, { recursive: true }));
  const program = join(home, "my-runed");
  writeFileSync(program, `#!/bin/sh\necho asked >> "$RUNED_HOME/asked"\n${script}\n`);
  chmodSync(program, 0o700);
  writeFileSync(join(home, "config.json"), JSON.stringify({ version: 1, runed_binary: program }));
  return home;
}

/** Counts how often the `runed` of a home was run. */
function asked(home: string): number {
  const path = join(home, "asked");
  return existsSync(path) ? readFileSync(path, "utf8").trim().split("\n").length : 0;
}

describe("`runed ensure` tells", () => {
  for (const { output, exit, reason, says } of ensure.rows) {
    it(output || "nothing", async () => {
      const refused = await refusal(connect({ home: homeOf(`cat <<'END'\n${output}\nEND\nexit ${exit}`) }));
      assert.equal(refused.reason, reason);
      assert.ok(refused.message.includes(says), refused.message);
    });
  }
});

it("compares versions", () => {
  for (const { daemon, client: own, older } of versions.rows) {
    assert.equal(isOlder(daemon, own), older, `${daemon} and ${own}`);
  }
  const source = readFileSync(join(ROOT, "runed", "version.py"), "utf8");
  assert.ok(source.includes(`__version__ = "${VERSION}"`), "the version of this client is not the daemon's");
});

const WELL_ENSURED = `echo '{"socket": "'"$RUNED_HOME"'/embedding.sock", "started": true}'`;

/** Makes a home with a daemon, its daemon.json, and a `runed` that notes that it was run and then does as told. */
async function servedHome(record: unknown, script = WELL_ENSURED, methods: Methods = {}): Promise<string> {
  const home = homeOf(script);
  endings.unshift(await serve(join(home, "embedding.sock"), { embed: () => VECTOR, ...methods }));
  if (record !== undefined) {
    writeFileSync(join(home, "daemon.json"), JSON.stringify(record));
  }
  return home;
}

describe("a bad daemon.json counts as none:", () => {
  const lay: Record<string, (path: string) => void> = {
    "nothing in it": (path) => writeFileSync(path, ""),
    "no UTF-8": (path) => writeFileSync(path, Buffer.from('{"version": "\xff"}', "latin1")),
    nested: (path) => writeFileSync(path, "[".repeat(100_000)),
    huge: (path) => {
      writeFileSync(path, '{"draining": true}');
      truncateSync(path, 2 ** 40);
    },
    "a directory": (path) => mkdirSync(path),
    "a pipe": (path) => execFileSync("mkfifo", [path]),
    "a device": (path) => symlinkSync("/dev/zero", path),
  };
  for (const [name, put] of Object.entries(lay)) {
    it(name, { timeout: 10_000 }, async () => {
      const home = await servedHome(undefined);
      put(join(home, "daemon.json"));
      await connectHome(home);
      assert.equal(asked(home), 0);
    });
  }
});

async function connectHome(home: string, options: ConnectOptions = {}): Promise<Client> {
  const caller = await connect({ home, ...options });
  endings.unshift(() => caller.close());
  return caller;
}

/** Answers each request over HTTP/2 in the same way; returns the socket. */
async function answering(answer: (stream: ServerHttp2Stream) => void, path = nextSocket()): Promise<string> {
  const server = createServer();
  const sessions = new Set<ServerHttp2Session>();
  server.on("session", (session) => sessions.add(session));
  server.on("stream", (stream) => {
    stream.on("error", () => {}); // the client hangs up
    answer(stream);
  });
  await new Promise<void>((listening) => server.listen(path, listening));
  endings.push(() => {
    for (const session of sessions) {
      session.destroy();
    }
    server.close();
  });
  return path;
}

/** A daemon in a process of its own, which can be stopped. Its queue of connections is short. */
const LISTENER = `
  import { createServer } from "node:http2";
  import { connectNodeAdapter } from "@connectrpc/connect-node";
  import { RunedService } from "runed-client/proto";
  const routes = (router) => router.service(RunedService, { embed: () => ({ vector: [1, 0] }) });
  const server = createServer(connectNodeAdapter({ routes }));
  server.listen({ path: process.argv[1], backlog: 1 }, () => console.log("listens"));
`;

/** Connects until no more connections fit. */
async function fill(path: string): Promise<void> {
  for (;;) {
    const socket = new Socket();
    endings.unshift(() => void socket.destroy());
    const error = await new Promise<NodeJS.ErrnoException | undefined>((settle) => {
      socket.once("connect", () => settle(undefined)).once("error", settle);
      socket.connect(path);
    });
    if (error !== undefined) {
      assert.equal(error.code, "EAGAIN");
      return;
    }
  }
}

const OUTDATED = { pid: 1, start_time: 2.5, version: "0.0.9", socket: "/s" };

/** Lets another user swap the directory of a socket with one of his own, again and again, while a client connects. */
async function swapped(): Promise<void> {
  const parent = homeOf("exit 1");
  const [directory, theirs] = [join(parent, "d"), join(parent, "d.theirs")];
  const listener = listenOn((socket) => socket.on("error", () => {}).resume());
  mkdirSync(directory, { mode: 0o700 });
  mkdirSync(theirs);
  await new Promise<void>((listening) => listener.listen(join(directory, "s"), listening));
  endings.unshift(() => void listener.close());
  for (const path of [parent, theirs]) {
    chownSync(path, 64321, 64321);
    chmodSync(path, 0o755);
  }
  const other = await otherUser("listen", join(theirs, "s"));
  await otherUser("swap", directory);
  let [served, refused] = [0, 0];
  for (let i = 0; i < 500; i++) {
    try {
      const socket = await connectToOwn(join(directory, "s"));
      await new Promise<void>((sent) => socket.end("secret", () => sent()));
      served += 1;
    } catch (error) {
      assert.ok(error instanceof RunedError && error.reason === "FOREIGN_PATH", String(error));
      refused += 1;
    }
  }
  assert.ok(served > 0 && refused > 0, `${served} served, ${refused} refused`);
  assert.equal(other.read(), null, "the other user was connected to");
}

/** Runs a process as another user, and returns its output, once it is ready. */
async function otherUser(task: string, path: string): Promise<Readable> {
  const program = join(ROOT, "tests", "fakes", "other_user.py");
  const process = spawn("python3", [program, "64321", task, path], { stdio: ["ignore", "pipe", "inherit"] });
  endings.unshift(() => void process.kill("SIGKILL"));
  await event(process.stdout, "data");
  process.stdout.pause();
  return process.stdout;
}

const tests: Record<string, () => Promise<void>> = {
  "a full backlog": async () => {
    const home = homeOf("exit 1");
    const path = join(home, "embedding.sock");
    const listener = spawn(process.execPath, ["--input-type=module", "--eval", LISTENER, path], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    endings.unshift(() => void listener.kill("SIGKILL"));
    await event(listener.stdout, "data");
    listener.kill("SIGSTOP");
    await fill(path);
    const caller = await connectHome(home);
    assert.equal((await refusal(caller.embed("text", { timeoutMs: 200 }))).reason, "DEADLINE_EXCEEDED");
    const call = caller.embed("text");
    assert.equal(await Promise.race([call.catch(String), delay(300, "it waits")]), "it waits");
    listener.kill("SIGCONT");
    assert.equal((await call).length, 2);
    assert.equal(asked(home), 0, "a daemon was started");
  },

  "one time limit": async () => {
    const path = join(homeOf("exit 1"), "embedding.sock");
    const listener = spawn(process.execPath, ["--input-type=module", "--eval", LISTENER, path], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    endings.unshift(() => void listener.kill("SIGKILL"));
    await event(listener.stdout, "data");
    listener.kill("SIGSTOP");
    await fill(path);
    const caller = await connect({ socketPath: path });
    const began = performance.now();
    assert.equal((await refusal(caller.embed("text", { timeoutMs: 700 }))).reason, "DEADLINE_EXCEEDED");
    const took = performance.now() - began;
    assert.ok(took >= 690 && took < 1150, `it took ${took} ms`);
    await caller.close();
  },

  "another user listens": async () => {
    if (process.getuid?.() !== 0) {
      return; // only root can run a process as another user
    }
    const path = join(homeOf("exit 1"), "s");
    const other = await otherUser("listen", path);
    const error = await refusal(connect({ socketPath: path }));
    assert.equal(error.reason, "FOREIGN_PATH");
    assert.match(error.message, /belongs to user id 64321/);
    assert.equal(other.read(), null, "it was connected to");
    await swapped();
  },

  "an older daemon": async () => {
    for (const [record, script, options, times] of [
      [OUTDATED, WELL_ENSURED, {}, 1],
      [{ ...OUTDATED, version: VERSION }, WELL_ENSURED, {}, 0],
      [{ ...OUTDATED, version: "99.0.0" }, WELL_ENSURED, {}, 0],
      [undefined, WELL_ENSURED, {}, 0],
      [OUTDATED, WELL_ENSURED, { spawn: false }, 0],
      [OUTDATED, "exit 1", {}, 1],
    ] as const) {
      const home = await servedHome(record, script);
      assert.equal((await (await connectHome(home, options)).embed("text")).length, 2);
      assert.equal(asked(home), times, JSON.stringify([record, script, options]));
      const target = new Target({ home, ...options });
      await target.ensure(new Deadline(undefined, undefined));
      await target.ensure(new Deadline(undefined, undefined));
      assert.equal(asked(home), 2 * times, "it is asked again and again");
    }
    const home = await servedHome(OUTDATED);
    rmSync(join(home, "config.json"));
    process.env.PATH = home;
    assert.equal((await (await connectHome(home)).embed("text")).length, 2, "without a program");
  },

  "one look at a time": async () => {
    const home = homeOf(`mkdir "$RUNED_HOME/looking" || exit 1; sleep 0.1; rmdir "$RUNED_HOME/looking"\n${WELL_ENSURED}`);
    const target = new Target({ home });
    const look = (timeoutMs?: number) => target.ensure(new Deadline(timeoutMs, undefined));
    const patient = Array.from({ length: 4 }, () => look());
    const hurried = Array.from({ length: 4 }, () => refusal(look(20)));
    await Promise.all(patient);
    for (const { reason } of await Promise.all(hurried)) {
      assert.equal(reason, "DEADLINE_EXCEEDED");
    }
    assert.equal(asked(home), 4);
  },

  "a draining daemon": async () => {
    const home = await servedHome({ ...OUTDATED, version: VERSION, draining: true });
    await connectHome(home);
    assert.equal(asked(home), 1);
  },

  "a daemon that is lost again": async () => {
    for (const deaths of [0, 1, 2, 3, 4]) {
      const home = homeOf(WELL_ENSURED);
      writeFileSync(join(home, "daemon.json"), JSON.stringify({ ...OUTDATED, version: VERSION, draining: true }));
      let left = deaths;
      await answering(
        (stream) => {
          if (--left >= 0) {
            stream.session?.destroy();
            return;
          }
          stream.respond({ ":status": 200, "content-type": "application/proto" });
          stream.end(toBinary(EmbedResponseSchema, create(EmbedResponseSchema, VECTOR)));
        },
        join(home, "embedding.sock"),
      );
      const embedding = (await connectHome(home)).embed("text");
      if (deaths < 4) {
        assert.equal((await embedding).length, 2);
      } else {
        assert.equal((await refusal(embedding)).reason, "DAEMON_UNAVAILABLE");
      }
      assert.equal(asked(home) - 1, Math.min(deaths, 3), `starts after ${deaths} deaths`);
    }
  },

  "a lost answer": async () => {
    const broken = await answering((stream) => stream.session?.destroy());
    const half = await answering((stream) => {
      stream.respond({ ":status": 200, "content-type": "application/proto" });
      stream.write("half", () => stream.session?.destroy());
    });
    for (const path of [broken, half]) {
      const caller = await connect({ socketPath: path });
      assert.equal((await refusal(caller.health())).reason, "DAEMON_UNAVAILABLE");
      await caller.close();
    }
  },

  "another program": async () => {
    for (const [status, type, body] of [
      [404, "text/plain", "not found"],
      [503, "text/plain", "later"],
      [200, "text/html", "<html>"],
      [200, "application/proto", "\xff\xff"],
    ] as const) {
      const path = await answering((stream) => {
        stream.respond({ ":status": status, "content-type": type });
        stream.end(body, "latin1");
      });
      const caller = await connect({ socketPath: path });
      const error = await refusal(caller.health());
      assert.equal(error.reason, "INTERNAL", `${status} ${type}: ${error.message}`);
      assert.match(error.message, /another program/);
      await caller.close();
    }
  },

  "an answer without a vector": async () => {
    const lengths: [number, number][] = [
      [2, 0],
      [0, 2],
      [2, 1],
    ];
    for (const both of lengths) {
      const caller = await client({
        embed: () => ({ fingerprint: "fp" }),
        embedBatch: () => ({ embeddings: both.map((length) => ({ vector: Array(length).fill(1) })), fingerprint: "fp" }),
      });
      assert.equal((await refusal(caller.embed("text"))).reason, "BACKEND_FAULT");
      assert.equal((await refusal(caller.embedBatch(["a", "b"]))).reason, "BACKEND_FAULT");
    }
  },

  "an error of one text": async () => {
    for (const reason of ["EMPTY_TEXT", "BACKEND_UNAVAILABLE", "QUEUE_FULL", "SHUTTING_DOWN", "BOOTSTRAPPING"]) {
      const embedding = { error: { reason, message: "it is so" } };
      let texts = 0;
      const caller = await client({
        embedBatch: () => {
          texts += 1;
          return { embeddings: [embedding], fingerprint: "fp" };
        },
        embedStream: async function* (requests) {
          for await (const { items } of requests) {
            texts += items.length;
            yield { results: items.map(({ id }) => ({ id, embedding })), fingerprint: "fp" };
          }
        },
      });
      for (const outcome of [(await caller.embedItems(["text"]))[0], await streamed(caller)]) {
        assert.ok(outcome instanceof RunedError && outcome.reason === reason, String(outcome));
      }
      assert.equal(texts, 2);
    }
  },

  "a successor with smaller limits": async () => {
    let [maxBatchSize, questions] = [9, 0];
    const sizes: number[] = [];
    const caller = await client({
      info: () => {
        questions += 1;
        return { maxBatchSize, maxRequestBytes: 1000n };
      },
      embedBatch: ({ texts }) => {
        if (texts.length > maxBatchSize) {
          throw wireError(Code.InvalidArgument, "BATCH_TOO_LARGE");
        }
        sizes.push(texts.length);
        return { embeddings: texts.map(() => VECTOR), fingerprint: "fp" };
      },
    });
    const texts = Array(9).fill("text");
    await caller.embedBatch(texts);
    maxBatchSize = 4;
    assert.equal((await caller.embedBatch(texts)).length, 9);
    await caller.embedItems(texts);
    assert.deepEqual([sizes, questions], [[9, 4, 4, 1, 4, 4, 1], 2]);
    // The same limits as before are no reason for another try.
    assert.equal((await refusal(caller.embedBatch(["x".repeat(2000)]))).reason, "REQUEST_TOO_LARGE");
    assert.equal(questions, 3);
  },

  "a successor with larger limits": async () => {
    let maxBatchSize = 2;
    const sizes: number[] = [];
    const home = await servedHome(undefined, WELL_ENSURED, {
      info: () => ({ maxBatchSize }),
      embedBatch: ({ texts }) => {
        sizes.push(texts.length);
        return { embeddings: texts.map(() => VECTOR), fingerprint: "fp" };
      },
      embed: once(wireError(Code.Unavailable, "SHUTTING_DOWN"), VECTOR),
    });
    const caller = await connectHome(home);
    const texts = Array(5).fill("text");
    await caller.embedBatch(texts);
    maxBatchSize = 9;
    await caller.embed("text"); // looks for the daemon again
    await caller.embedBatch(texts);
    assert.deepEqual(sizes, [2, 2, 1, 5]);
  },

  "the progress of a start": async () => {
    const calls: Record<string, (caller: Client) => Promise<unknown>> = {
      embed: (caller) => caller.embed("text"),
      embedBatch: (caller) => caller.embedBatch(["text"]),
      embedStream: streamed,
      info: (caller) => caller.info(),
      waitUntilReady: (caller) => caller.waitUntilReady(),
      warmUp: (caller) => caller.warmUp(),
      setCentroids: (caller) => caller.setCentroids([[1, 0]]),
    };
    const loading = { status: HealthResponse_Status.LOADING, message: "looking for engine and model" };
    for (const [name, call] of Object.entries(calls)) {
      for (const [states, news] of [
        [
          [loading, loading],
          [
            ["LOADING", "looking for engine and model"],
            ["OK", ""],
          ],
        ],
        [[], []],
      ] as const) {
        let looks = 0;
        const methods: Methods = {
          health: () => states[looks++] ?? { status: HealthResponse_Status.OK },
          embedBatch: ({ texts }) => ({ embeddings: texts.map(() => VECTOR), fingerprint: "fp" }),
          setCentroids: async () => ({ version: "v", nlist: 1 }),
          warmUp: () => ({}),
        };
        const told: [string, string][] = [];
        const caller = await client(methods, { onProgress: ({ status, message }) => told.push([status, message]) });
        await call(caller);
        await call(caller);
        assert.deepEqual(told, news, name);
        assert.equal(looks, states.length + 1, name);
        looks = 0;
        await call(await client(methods));
        assert.equal(looks, 0, `${name} without a callback`);
      }
    }
    let looks = 0;
    const home = await servedHome(undefined, WELL_ENSURED, {
      health: () => {
        looks += 1;
        return { status: HealthResponse_Status.OK };
      },
      embed: once(wireError(Code.Unavailable, "SHUTTING_DOWN"), VECTOR),
    });
    const caller = await connectHome(home, { onProgress: () => {} });
    for (const text of ["looks for the daemon again", "looks at its Health", "does not look"]) {
      await caller.embed(text);
    }
    assert.equal(looks, 2, "looks for two daemons");
    const silent = await client({ health: () => new Promise(() => {}) }, { onProgress: () => {}, timeoutMs: 100 });
    const late = await refusal(silent.embed("text"));
    assert.equal(late.reason, "DEADLINE_EXCEEDED");
    assert.doesNotMatch(late.message, /not ready yet/, "it knows nothing of the daemon");
  },

  "the model of a call": async () => {
    const asked: [string, string][] = [];
    const note = (method: string, model: string) => {
      if (model !== "m") {
        asked.push([method, model]);
      }
    };
    const methods = (): Methods => {
      const refuse = once(wireError(Code.FailedPrecondition, "BOOTSTRAPPING"), undefined);
      return {
        info: ({ model }) => {
          note("Info", model);
          return { vectorDim: 2, model };
        },
        health: ({ model }) => {
          note("Health", model);
          return { status: HealthResponse_Status.OK, model };
        },
        embed: ({ model }) => {
          refuse();
          return { ...VECTOR, model };
        },
        embedBatch: ({ texts, model }) => {
          refuse();
          return { embeddings: texts.map(() => VECTOR), fingerprint: "fp", model };
        },
        countTokens: ({ texts, model }) => {
          refuse();
          return { tokenCounts: texts.map(() => 1), model };
        },
        rerank: ({ documents }) => {
          refuse();
          return { results: documents.map((_, index) => ({ index })) };
        },
        embedStream: async function* (requests) {
          let name = "";
          for await (const { items, model } of requests) {
            name ||= model;
            refuse();
            yield { results: items.map(({ id }) => ({ id, embedding: VECTOR })), fingerprint: "fp", model: name };
          }
        },
        setCentroids: async (requests) => {
          let name = "";
          for await (const { payload } of requests) {
            name ||= payload.case === "header" ? payload.value.model : "";
          }
          refuse();
          return { version: "v", nlist: 1, model: name };
        },
        loadModel: () => {
          refuse();
          return {};
        },
      };
    };
    for (const call of namedCalls) {
      await call(await client(methods(), { onProgress: () => {} }));
    }
    assert.deepEqual(asked, []);
  },

  "a daemon with one model": async () => {
    const caller = await client({
      embedBatch: ({ texts }) => ({ embeddings: texts.map(() => VECTOR), fingerprint: "fp" }),
      countTokens: ({ texts }) => ({ tokenCounts: texts.map(() => 1) }),
      setCentroids: async () => ({ version: "v", nlist: 1 }),
      warmUp: () => ({}),
    });
    for (const call of namedCalls) {
      assert.equal((await refusal(call(caller))).reason, "UNIMPLEMENTED", String(call));
    }
    assert.equal((await caller.info()).vectorDim, 2);
    assert.equal((await caller.health({ model: "" })).status, "OK");
    await caller.warmUp();
  },

  "a refusal to the end": async () => {
    const busy = () => wireError(Code.ResourceExhausted, "QUEUE_FULL", { limit_texts: "7" }, 0.001);
    let [calls, streams] = [0, 0];
    const caller = await client(
      {
        embed: async () => {
          await delay(calls++ === 0 ? 0 : 1000);
          throw busy();
        },
        // biome-ignore lint/correctness/useYield: it never answers
        embedStream: async function* () {
          await delay(streams++ === 0 ? 0 : 1000);
          throw busy();
        },
      },
      { timeoutMs: 400 },
    );
    for (const error of [await refusal(caller.embed("text")), await caught(streamed(caller))]) {
      assert.ok(error instanceof RunedError);
      assert.deepEqual([error.reason, error.metadata], ["QUEUE_FULL", { limit_texts: "7" }]);
      assert.match(error.message, /\(tried 2 times in 0\.[3-9] s\)$/);
    }
  },

  "an idle stream": async () => {
    let streams = 0;
    const caller = await client({
      embedStream: async function* (requests) {
        streams += 1;
        for await (const { items } of requests) {
          if (items.length > 0) {
            yield { results: items.map(({ id }) => ({ id, embedding: VECTOR })), fingerprint: "fp" };
            throw wireError(Code.Unavailable, "SHUTTING_DOWN");
          }
        }
      },
    });
    async function* items(): AsyncGenerator<[string, string]> {
      for (const id of ["a", "b"]) {
        yield [id, "text"];
        await delay(300); // the end of the stream arrives
      }
    }
    const ids: string[] = [];
    for await (const [id, outcome] of caller.embedStream(items())) {
      assert.ok(!(outcome instanceof RunedError), String(outcome));
      ids.push(id);
    }
    assert.deepEqual([ids, streams], [["a", "b"], 2]);
  },

  "a silent stream": async () => {
    const silent = await client(
      {
        embedStream: async function* (requests) {
          for await (const _ of requests) {
            // And reads on.
          }
          await new Promise(() => {});
        },
      },
      { timeoutMs: 300 },
    );
    const error = await caught(streamed(silent));
    assert.ok(error instanceof RunedError && error.reason === "DEADLINE_EXCEEDED", String(error));
    assert.match(error.message, /no embedding of the stream came within 300 ms/);
    // The time in which the caller has no text does not count.
    const caller = await client({}, { timeoutMs: 300 });
    async function* items(): AsyncGenerator<[number, string]> {
      for (let id = 0; id < 2; id++) {
        yield [id, "text"];
        await delay(600);
      }
    }
    let count = 0;
    for await (const [, outcome] of caller.embedStream(items())) {
      assert.ok(!(outcome instanceof RunedError), String(outcome));
      count += 1;
    }
    assert.equal(count, 2);
  },

  "a home in other bytes": async () => {
    const script = `import("${ROOT}/clients/ts/dist/target.js").then(({ Target }) => new Target({})).catch(({ reason }) => console.log(reason))`;
    const run = `RUNED_HOME=$(printf '/h\\377') exec "$0" -e "$1"`;
    assert.equal(execFileSync("/bin/sh", ["-c", run, process.execPath, script], { encoding: "utf8" }), "BAD_SETTING\n");
  },

  "many calls at once": async () => {
    let [now, peak] = [0, 0];
    let unblock = () => {};
    const blocked = new Promise<void>((resolve) => {
      unblock = resolve;
    });
    const caller = await client({
      embed: async () => {
        now += 1;
        peak = Math.max(peak, now);
        await blocked;
        now -= 1;
        return VECTOR;
      },
    });
    const calls = Array.from({ length: 700 }, () => caller.embed("text"));
    while (now < policy.CONNECTIONS) {
      await delay(1);
    }
    assert.equal((await refusal(caller.embed("late", { timeoutMs: 100 }))).reason, "DEADLINE_EXCEEDED");
    const signal = AbortSignal.timeout(100);
    await assert.rejects(caller.embed("left", { signal }), (reason) => reason === signal.reason);
    unblock();
    assert.equal((await Promise.all(calls)).length, 700);
    assert.equal(peak, policy.CONNECTIONS);
  },

  "a closed client": async () => {
    const caller = await client({});
    await caller.embed("text");
    await caller.close();
    assert.equal((await refusal(caller.embed("text"))).reason, "CLOSED");
    assert.equal((await refusal(streamed(caller))).reason, "CLOSED");
  },
};

describe("keeps the rule of", () => {
  for (const { name, languages } of rules.rows) {
    if (languages === undefined || languages.includes("typescript")) {
      it(name, async () => {
        assert.ok(tests[name], "it has no test");
        await tests[name]();
      });
    }
  }
});
