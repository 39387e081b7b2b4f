/** The parts that all tests share: short homes, the real daemon, a small scripted daemon, and the reference vectors. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http2";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { BinaryWriter } from "@bufbuild/protobuf/wire";
import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { RunedError } from "runed-client";
import { RunedService } from "#gen/runed/v1/runed_pb.js";

export const run = promisify(execFile);

/** The folder of the package. */
export const PACKAGE = join(import.meta.dirname, "..", "..");

/** The folder of the whole project. */
export const ROOT = join(PACKAGE, "..", "..");

/** A Qwen3 of 64 dimensions and random weights, which loads in a moment. */
export const TINY_MODEL = join(ROOT, "tests", "fixtures", "tiny-qwen3.f32.gguf");

/** Makes an empty directory whose path leaves room for a socket. */
export function shortHome(): string {
  return mkdtempSync("/tmp/rt-");
}

/** A home for daemons that clients start; `stop` ends them and removes it. */
export class Home {
  readonly path: string;

  /** @param variables - Settings for this process and so for the daemon; the home is not among them. */
  constructor(variables: Record<string, string> = {}, path = shortHome()) {
    for (const name of ["RUNED_LLAMA_SERVER", "RUNED_MODEL"]) {
      assert.ok(process.env[name], `${name} is not set: run the tests by \`make test\``);
    }
    this.path = path;
    Object.assign(process.env, variables);
  }

  async stop(): Promise<void> {
    await run("runed", ["stop"], { env: { ...process.env, RUNED_HOME: this.path } });
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** Reference vectors of the model that `make test` names. */
export interface Golden {
  fixtures: { text: string; tokens: number; vector: number[] }[];
}

export function golden(): Golden {
  return JSON.parse(readFileSync(join(ROOT, "tests", "fixtures", "minilm.golden.json"), "utf8")) as Golden;
}

export function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i] ?? Number.NaN, b[i] ?? Number.NaN];
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  return dot / Math.sqrt(aa * bb);
}

/** Returns the error of runed that a promise rejects with. */
export async function refusal(promise: Promise<unknown>): Promise<RunedError> {
  const error = await promise.then(
    () => assert.fail("it was not refused"),
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof RunedError, String(error));
  return error;
}

/** Polls until a condition holds. */
export async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (let tries = 0; !(await condition()); tries++) {
    assert.ok(tries < 1000, `${what} did not come within 10 s`);
    await delay(10);
  }
}

/** The file descriptors of this process that are sockets. */
export function openSockets(): number {
  return process.getActiveResourcesInfo().filter((name) => name === "PipeWrap").length;
}

/** The number of file descriptors of this process. */
export function openFiles(): number {
  return readdirSync("/proc/self/fd").length;
}

/** Serves some methods of the contract on a socket, by HTTP/2; returns a function that ends this. */
export async function serve(
  socketPath: string,
  methods: Partial<ServiceImpl<typeof RunedService>>,
): Promise<() => Promise<void>> {
  const sessions = new Set<{ destroy(): void }>();
  const server = createServer(connectNodeAdapter({ routes: (router) => router.service(RunedService, methods) }));
  server.on("session", (session) => {
    sessions.add(session);
    session.on("close", () => sessions.delete(session));
  });
  await new Promise<void>((listening) => server.listen(socketPath, listening));
  return () => {
    for (const session of sessions) {
      session.destroy();
    }
    return new Promise((closed) => server.close(() => closed()));
  };
}

/** Makes an error as the daemon sends it. */
export function wireError(
  code: Code,
  reason: string,
  metadata: Record<string, string> = {},
  retrySeconds?: number,
): ConnectError {
  const info = new BinaryWriter().tag(1, 2).string(reason).tag(2, 2).string("runed.v1");
  for (const [key, value] of Object.entries(metadata)) {
    info.tag(3, 2).fork().tag(1, 2).string(key).tag(2, 2).string(value).join();
  }
  // A field of a newer google.rpc.ErrorInfo.
  info.tag(99, 0).uint32(7);
  const error = new ConnectError(`refused with ${reason}`, code);
  error.details = [{ type: "google.rpc.ErrorInfo", value: info.finish() }];
  if (retrySeconds !== undefined) {
    const nanos = Math.round((retrySeconds % 1) * 1e9);
    const duration = new BinaryWriter().tag(1, 0).int64(Math.floor(retrySeconds)).tag(2, 0).int32(nanos).finish();
    error.details.push({ type: "google.rpc.RetryInfo", value: new BinaryWriter().tag(1, 2).bytes(duration).finish() });
  }
  return error;
}

export { Code };
