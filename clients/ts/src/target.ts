/** Where the daemon is, and how it is found or started. No other module reads the environment. */

import { type ExecFileException, execFile, execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { constants, lstatSync } from "node:fs";
import { open } from "node:fs/promises";
import type { Socket } from "node:net";
import { userInfo } from "node:os";
import { dirname, join, resolve } from "node:path";
import { RunedError } from "./errors.js";
import { connectToOwn } from "./peer.js";
import { Places } from "./places.js";
import { DIAL_PATIENCE_MS, DIAL_PAUSE_MS, MAX_SOCKET_PATH, START_PATIENCE_MS } from "./policy.js";
import { checkHome, mayRead } from "./trust.js";
import { isOlder, VERSION } from "./version.js";
import { Deadline } from "./waiting.js";

/** Milliseconds that `runed ensure` may go on after its time is over. By this, a call may exceed its limit. */
const ENSURE_GRACE_MS = 1000;

/** The codes of a failed connect while no process listens. */
const ABSENT = new Set(["ENOENT", "ECONNREFUSED", "ECONNRESET", "ENOTDIR"]);

/** The code of a failed connect while more connections wait to be accepted than fit. */
const BUSY = "EAGAIN";

/** Where a daemon is, as callers tell it. */
export interface Place {
  /** The directory of the daemon. By default it is `RUNED_HOME`, or else `~/.runed`. */
  home?: string | undefined;
  /** The socket of a daemon that others look after. The client never starts or replaces that daemon. */
  socketPath?: string | undefined;
  /** Whether to start a daemon if none runs, and to replace an older one; true by default. */
  spawn?: boolean | undefined;
}

/** A daemon, running or not. */
export class Target {
  /** The home of a daemon that may be started; undefined if it must not be. */
  readonly home: string | undefined;
  /** Where the daemon listens. */
  readonly socket: string;
  /** The directory of the daemon; undefined if only its socket is known. */
  readonly #directory: string | undefined;
  /** The older daemon that `runed ensure` was asked to replace. */
  #asked = "";
  /** The place of the one call that looks for the daemon. */
  readonly #looking = new Places(1);

  /** @throws TypeError Both `home` and `socketPath` are given. RunedError BAD_SETTING: No home directory is known for `~`. */
  constructor({ home, socketPath, spawn = true }: Place) {
    if (socketPath) {
      if (home) {
        throw new TypeError("give home or socketPath, not both");
      }
      this.socket = shortSocketPath(absolute(socketPath));
      return;
    }
    const directory = absolute(home || process.env.RUNED_HOME || "~/.runed");
    this.socket = shortSocketPath(join(directory, "embedding.sock"));
    if (directory.includes("\uFFFD")) {
      // Node.js puts this character in the place of bytes that are not UTF-8.
      throw new RunedError("BAD_SETTING", `the home ${directory} is not UTF-8; accepted is a path in UTF-8`);
    }
    this.#directory = directory;
    this.home = spawn ? directory : undefined;
  }

  /**
   * Connects to the socket. Waits while more connections wait to be accepted than fit.
   *
   * @param signal - Ends the wait.
   * @throws RunedError DAEMON_UNAVAILABLE: No process listens. FOREIGN_PATH: What is there cannot be trusted or connected to.
   * DEADLINE_EXCEEDED: The daemon took no connection in time.
   */
  async dial(signal?: AbortSignal): Promise<Socket> {
    const deadline = new Deadline(
      DIAL_PATIENCE_MS,
      signal,
      `the daemon on ${this.socket} is overloaded or stopped: no connection`,
    );
    for (;;) {
      const socket = await this.#dialOnce();
      if (socket !== undefined) {
        return socket;
      }
      await deadline.sleep(DIAL_PAUSE_MS);
    }
  }

  /**
   * Makes sure that a daemon listens.
   *
   * @throws RunedError DAEMON_UNAVAILABLE: No process listens, and none may be started. DAEMON_START_FAILED: It could not be.
   */
  async ensure(deadline: Deadline): Promise<void> {
    // Otherwise each of the calls that lose a daemon together would run a `runed ensure` of its own.
    await this.#looking.hold(deadline, async () => await this.#look(deadline));
  }

  async #look(deadline: Deadline): Promise<void> {
    if (this.#directory !== undefined) {
      checkHome(this.#directory);
    }
    const problem = await this.#probe(deadline);
    if (this.home === undefined || (problem !== undefined && problem.reason !== "DAEMON_UNAVAILABLE")) {
      if (problem !== undefined) {
        throw problem;
      }
      return;
    }
    if (problem !== undefined) {
      return await this.#start(this.home, deadline);
    }
    if (!(await this.#mustMakeRoom(this.home))) {
      return;
    }
    try {
      return await this.#start(this.home, deadline);
    } catch (error) {
      if ((await this.#probe(deadline)) === undefined) {
        return; // an older daemon is better than none
      }
      throw error;
    }
  }

  /** Connects once. Returns undefined while more connections wait to be accepted than fit. */
  async #dialOnce(): Promise<Socket | undefined> {
    checkSocketDirectory(this.socket);
    try {
      return await connectToOwn(this.socket);
    } catch (error) {
      if (error instanceof RunedError) {
        throw error;
      }
      const { code, message } = error as NodeJS.ErrnoException;
      const what = code ?? message;
      if (what === BUSY) {
        return undefined;
      }
      if (ABSENT.has(what)) {
        const absent = `no daemon listens on ${this.socket}; start one by \`runed ensure\``;
        throw new RunedError("DAEMON_UNAVAILABLE", absent, { cause: error });
      }
      const foreign = `${this.socket} cannot be connected to: ${what}; set RUNED_HOME to another place`;
      throw new RunedError("FOREIGN_PATH", foreign, { cause: error });
    }
  }

  /** Returns undefined if a daemon listens, and otherwise the error that says why it cannot be talked to. */
  async #probe(deadline: Deadline): Promise<RunedError | undefined> {
    deadline.remaining();
    try {
      // A full queue of connections is the mark of a daemon with much to do.
      (await this.#dialOnce())?.destroy();
    } catch (error) {
      if (error instanceof RunedError) {
        return error;
      }
      throw error;
    }
    return undefined;
  }

  /**
   * Tells whether `runed ensure` has something to do although a daemon listens: that daemon is about to end, or is older than
   * this client. An older one is told once: the installed `runed` may be as old, and then leaves it.
   */
  async #mustMakeRoom(home: string): Promise<boolean> {
    const record = await readJson(join(home, "daemon.json"));
    const { pid, start_time: startTime, version, draining } = record;
    const name = JSON.stringify([pid, startTime, version]);
    if (draining === true) {
      return true;
    }
    if (typeof version !== "string" || name === this.#asked || !isOlder(version, VERSION)) {
      return false;
    }
    this.#asked = name;
    return true;
  }

  async #start(home: string, deadline: Deadline): Promise<void> {
    const timeoutMs = deadline.remaining() ?? START_PATIENCE_MS;
    const configured = await configuredProgram(home);
    const programs = configured === undefined ? ["runed", join(home, "bin", "runed")] : [configured];
    for (const program of programs) {
      const socket = await runEnsure(program, home, timeoutMs, deadline.signal);
      if (socket === undefined) {
        continue;
      }
      if (socket !== this.socket) {
        throw new RunedError(
          "DAEMON_START_FAILED",
          `\`${program} ensure --json\` serves ${socket} instead of ${this.socket}; ` +
            "use a version of it that fits this client",
        );
      }
      return;
    }
    throw new RunedError(
      "DAEMON_START_FAILED",
      configured === undefined
        ? "there is no `runed` program to start the daemon with; run `pip install runed`, or name one as runed_binary in config.json"
        : `${configured}, which config.json names as runed_binary, is no program; correct it there`,
    );
  }
}

/** Returns the path itself or, if it is too long, the alias that daemon and clients agree on. */
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

/**
 * Refuses an alias directory that another user laid out in the world-writable /tmp.
 *
 * Its owner could listen there in the daemon's place and read every text. A missing directory is fine: nobody listens.
 */
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

/** Expands a leading ~ and returns the absolute path, as the daemon does. */
function absolute(path: string): string {
  const [, name, below = ""] = /^~([^/]*)(.*)$/s.exec(path) ?? [];
  if (name === undefined) {
    return resolve(path);
  }
  const directory = homeOf(name);
  if (directory === undefined) {
    throw new RunedError(
      "BAD_SETTING",
      `${path}: no home directory is known for ~${name}; set HOME, or RUNED_HOME to a full path`,
    );
  }
  return resolve(join(directory, below));
}

/** Returns the home directory of a user, and of this one if the name is empty; undefined if it is not known. */
function homeOf(name: string): string | undefined {
  try {
    if (name === "") {
      return process.env.HOME || userInfo().homedir;
    }
    // Node.js has no look-up of other users. The shell has, and leaves a name alone that it does not know.
    const expanded = /^[\w.-]+$/.test(name) ? execFileSync("/bin/sh", ["-c", `printf %s ~${name}`], { encoding: "utf8" }) : "";
    return expanded.startsWith("/") ? expanded : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Reads `runed_binary` of config.json. It ignores a file that cannot be read, or that another user can change: `runed` itself says
 * what is wrong with that file.
 */
async function configuredProgram(home: string): Promise<string | undefined> {
  const path = process.env.RUNED_CONFIG ? absolute(process.env.RUNED_CONFIG) : join(home, "config.json");
  const { runed_binary: program } = mayRead(path) ? await readJson(path) : {};
  return typeof program === "string" && program !== "" ? absolute(program) : undefined;
}

/** The size in bytes up to which a file is read. A larger one is no state of runed. */
const MAX_STATE_BYTES = 4 << 20;

/**
 * Reads a file that holds a JSON object. A missing or broken one is an empty object, and so is something else in its place, such
 * as a pipe, which would keep the client waiting.
 */
async function readJson(path: string): Promise<Record<string, unknown>> {
  try {
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stat = await file.stat();
      if (!stat.isFile() || stat.size > MAX_STATE_BYTES) {
        return {};
      }
      return objectOf(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(await file.readFile())));
    } finally {
      await file.close();
    }
  } catch {
    return {};
  }
}

function objectOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

/** Runs `runed ensure`; returns the socket of the daemon, or undefined if there is no such program. */
async function runEnsure(
  program: string,
  home: string,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  const args = ["ensure", "--json", "--timeout", (timeoutMs / 1000).toFixed(3)];
  const env = { ...process.env, RUNED_HOME: home };
  const options = { env, ...(signal && { signal }) };
  const { error, stdout, stderr } = await new Promise<{ error: ExecFileException | null; stdout: string; stderr: string }>(
    (settle) => {
      const child = execFile(program, args, options, (error, stdout, stderr) => {
        clearTimeout(timer);
        settle({ error, stdout, stderr });
      });
      const timer = setTimeout(() => {
        child.kill("SIGKILL");
        // A child of it may hold these open, and the end of both is waited for.
        child.stdout?.destroy();
        child.stderr?.destroy();
      }, timeoutMs + ENSURE_GRACE_MS);
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
  if (answer === undefined || error !== null) {
    const last = stderr.trim().split("\n").at(-1);
    throw new RunedError("DAEMON_START_FAILED", `\`${program} ensure --json\` gave no answer: ${last || "it said nothing"}`);
  }
  return answer;
}

function parseAnswer(stdout: string): string | RunedError | undefined {
  let answer: Record<string, unknown>;
  try {
    answer = objectOf(JSON.parse(stdout));
  } catch {
    return undefined;
  }
  const { reason, message } = objectOf(answer.error);
  if (typeof reason === "string" && reason !== "") {
    return new RunedError(reason, String(message));
  }
  return typeof answer.socket === "string" ? answer.socket : undefined;
}
