/** Which daemon a client talks to, and how it comes to be there. Nothing else here reads the environment. */

import { type ExecFileException, execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { lstatSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { RunedError } from "./errors.js";
import type { Deadline } from "./waiting.js";

/** The longest socket path in bytes: macOS holds 104 with the closing NUL. */
const MAX_SOCKET_PATH = 103;

/** Milliseconds that the start of a daemon may take where the caller sets no limit. */
const START_TIMEOUT_MS = 60_000;

/** What `connect` fails with while nobody listens. */
const ABSENT = new Set(["ENOENT", "ECONNREFUSED", "ENOTDIR"]);

/** What `connect` fails with while more connections wait to be accepted than fit: somebody listens. */
const BUSY = new Set(["EAGAIN", "EWOULDBLOCK"]);

/** Where a daemon is, as callers tell it. */
export interface Place {
  home?: string | undefined;
  socketPath?: string | undefined;
  spawn?: boolean | undefined;
}

/** A daemon, running or not. */
export class Target {
  /** The home of a daemon that may be started; undefined if it must not be. */
  readonly home: string | undefined;
  #socket: string;

  /** @throws TypeError Both `home` and `socketPath` are given. */
  constructor({ home, socketPath, spawn = true }: Place) {
    if (socketPath !== undefined) {
      if (home !== undefined) {
        throw new TypeError("give home or socketPath, not both");
      }
      this.#socket = shortSocketPath(resolve(socketPath));
      return;
    }
    const directory = absolute(home ?? (process.env.RUNED_HOME || "~/.runed"));
    this.#socket = shortSocketPath(join(directory, "embedding.sock"));
    this.home = spawn ? directory : undefined;
  }

  /** Where the daemon listens. */
  get socket(): string {
    return this.#socket;
  }

  /**
   * Opens a connection; errors come by its event "error".
   *
   * @throws RunedError FOREIGN_PATH: Somebody else may listen there in the daemon's place.
   */
  dial(): Socket {
    checkSocketDirectory(this.#socket);
    return connect(this.#socket);
  }

  /**
   * Sees to it that a daemon listens.
   *
   * @returns Whether one was started for that.
   * @throws RunedError DAEMON_UNAVAILABLE: Nobody listens, and nobody may be started. DAEMON_START_FAILED: It could not be.
   */
  async ensure(deadline: Deadline): Promise<boolean> {
    if (await this.#listens(deadline)) {
      return false;
    }
    if (this.home === undefined) {
      throw new RunedError(
        "DAEMON_UNAVAILABLE",
        `no daemon listens on ${this.#socket}; start one with \`runed ensure\` or \`runed\``,
      );
    }
    return await this.#start(this.home, deadline);
  }

  async #listens(deadline: Deadline): Promise<boolean> {
    deadline.remaining();
    const socket = this.dial();
    try {
      return await new Promise<boolean>((settle, fail) => {
        socket.once("connect", () => settle(true));
        socket.once("error", (error: NodeJS.ErrnoException) => {
          const code = error.code ?? "";
          if (ABSENT.has(code) || BUSY.has(code)) {
            settle(BUSY.has(code));
          } else {
            fail(new RunedError("DAEMON_UNAVAILABLE", `${this.#socket} cannot be connected to: ${code}`, { cause: error }));
          }
        });
      });
    } finally {
      socket.destroy();
    }
  }

  async #start(home: string, deadline: Deadline): Promise<boolean> {
    const timeoutMs = deadline.remaining() ?? START_TIMEOUT_MS;
    const configured = await configuredProgram(home);
    const programs = configured === undefined ? ["runed", join(home, "bin", "runed")] : [configured];
    for (const program of programs) {
      const result = await runEnsure(program, home, timeoutMs, deadline.signal);
      if (result !== undefined) {
        this.#socket = result.socket;
        return result.started;
      }
    }
    throw new RunedError(
      "DAEMON_START_FAILED",
      configured === undefined
        ? "there is no `runed` program to start the daemon with; run `pip install runed`, or name one as runed_binary in config.json"
        : `${configured}, which config.json names as runed_binary, is no program; correct it there`,
    );
  }
}

/** Gives the path itself or, where it is too long, the alias that daemon and clients agree on. */
function shortSocketPath(path: string): string {
  if (Buffer.byteLength(path) <= MAX_SOCKET_PATH) {
    return path;
  }
  const digest = createHash("sha256").update(path).digest("hex").slice(0, 32);
  return join(aliasDirectory(), `runed-${digest}.sock`);
}

function aliasDirectory(): string {
  return `/tmp/runed-${process.getuid?.()}`;
}

/** Refuses an alias directory that somebody else laid out in the world-writable /tmp: he could listen there and read every text. */
function checkSocketDirectory(socket: string): void {
  const directory = dirname(socket);
  if (directory !== aliasDirectory()) {
    return;
  }
  const stat = lstatSync(directory, { throwIfNoEntry: false });
  if (stat !== undefined && !(stat.isDirectory() && stat.uid === process.getuid?.() && (stat.mode & 0o077) === 0)) {
    throw new RunedError(
      "FOREIGN_PATH",
      `${directory} is not a directory of yours with mode 0700, so a socket in it cannot be trusted; ` +
        "remove it, or set RUNED_HOME to a shorter path",
    );
  }
}

function absolute(path: string): string {
  return resolve(path === "~" || path.startsWith("~/") ? join(homedir(), path.slice(1)) : path);
}

/** Reads `runed_binary` of config.json; a file that cannot be read is left for `runed` itself to complain about. */
async function configuredProgram(home: string): Promise<string | undefined> {
  const path = process.env.RUNED_CONFIG ? absolute(process.env.RUNED_CONFIG) : join(home, "config.json");
  try {
    const config: unknown = JSON.parse(await readFile(path, "utf8"));
    if (typeof config === "object" && config !== null && "runed_binary" in config && typeof config.runed_binary === "string") {
      return config.runed_binary === "" ? undefined : absolute(config.runed_binary);
    }
  } catch {
    // As above.
  }
  return undefined;
}

interface Ensured {
  socket: string;
  started: boolean;
}

/** Runs `runed ensure`; gives undefined if there is no such program. */
async function runEnsure(
  program: string,
  home: string,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<Ensured | undefined> {
  const args = ["ensure", "--json", "--timeout", (timeoutMs / 1000).toFixed(3)];
  const { error, stdout, stderr } = await new Promise<{ error: ExecFileException | null; stdout: string; stderr: string }>(
    (settle) => {
      const env = { ...process.env, RUNED_HOME: home };
      const child = execFile(program, args, { env, ...(signal && { signal }) }, (error, stdout, stderr) => {
        settle({ error, stdout, stderr });
      });
      child.stdin?.end();
    },
  );
  signal?.throwIfAborted();
  if (error?.code === ("ENOENT" as unknown) || error?.code === ("EACCES" as unknown)) {
    return undefined;
  }
  const answer = parseAnswer(stdout);
  if (answer instanceof RunedError) {
    throw answer;
  }
  if (answer === undefined) {
    const last = stderr.trim().split("\n").at(-1);
    throw new RunedError("DAEMON_START_FAILED", `\`${program} ensure --json\` gave no answer: ${last || "it said nothing"}`);
  }
  return answer;
}

function parseAnswer(stdout: string): Ensured | RunedError | undefined {
  let answer: unknown;
  try {
    answer = JSON.parse(stdout);
  } catch {
    return undefined;
  }
  const { socket, started, error } = (answer ?? {}) as Record<string, unknown>;
  if (typeof error === "object" && error !== null) {
    const { reason, message } = error as Record<string, unknown>;
    return new RunedError(String(reason), String(message));
  }
  return typeof socket === "string" ? { socket, started: started === true } : undefined;
}
