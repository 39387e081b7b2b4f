/**
 * Connects to UNIX sockets of this user alone.
 *
 * Node.js cannot ask the kernel who listens. But only the user of a listener, and root, can have made a file of a socket that
 * belongs to that user. So the owner of the file tells the user of the listener, if the connect reaches exactly that file.
 */

import { closeSync, existsSync, fstatSync, openSync, statSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { RunedError } from "./errors.js";

/** The flag of Linux's open(2) that opens a file of any kind only to point at it. Node.js does not name it. */
const O_PATH = 0o10000000;

/** Whether a path can lead through a descriptor to its file, whatever happens to the path that was opened. */
const CAN_PIN = process.platform === "linux" && existsSync("/proc/self/fd");

/** A file of a socket whose owner is known. */
interface Owned {
  /** The path to connect to. */
  readonly address: string;
  /** Whether the connect reached that file. Where files cannot be pinned, a swap there and back again stays unseen. */
  reached(): boolean;
  release(): void;
}

/**
 * Connects to a socket.
 *
 * @throws RunedError FOREIGN_PATH: The socket is another user's. NodeJS.ErrnoException: It cannot be connected to.
 */
export async function connectToOwn(path: string): Promise<Socket> {
  const file = CAN_PIN ? pin(path) : look(path);
  try {
    const socket = await new Promise<Socket>((opened, failed) => {
      const socket = connect(file.address);
      socket.once("connect", () => opened(socket));
      // Stays: an error without a listener would end the process.
      socket.on("error", failed);
    });
    if (!file.reached()) {
      socket.destroy();
      throw new RunedError("FOREIGN_PATH", `${path} was replaced during the connect, so nothing was sent; try again`);
    }
    return socket;
  } finally {
    file.release();
  }
}

function pin(path: string): Owned {
  const descriptor = openSync(path, O_PATH);
  const release = () => closeSync(descriptor);
  try {
    checkOwner(path, fstatSync(descriptor));
  } catch (error) {
    release();
    throw error;
  }
  return { address: `/proc/self/fd/${descriptor}`, reached: () => true, release };
}

function look(path: string): Owned {
  const before = statSync(path);
  checkOwner(path, before);
  const reached = () => {
    const now = statSync(path, { throwIfNoEntry: false });
    return now !== undefined && now.dev === before.dev && now.ino === before.ino && now.uid === before.uid;
  };
  return { address: path, reached, release: () => {} };
}

function checkOwner(path: string, file: { uid: number }): void {
  const own = process.geteuid?.();
  if (file.uid !== own) {
    throw new RunedError(
      "FOREIGN_PATH",
      `what listens on ${path} belongs to user id ${file.uid}, and you are user id ${own}, so nothing was sent; ` +
        "run this as that user, or set RUNED_HOME to a place of your own",
    );
  }
}
