/** Whether other users have a hand in a home. Root is trusted everywhere, since it can do everything anyway. */

import { lstatSync, readlinkSync, type Stats, statSync } from "node:fs";
import { userInfo } from "node:os";
import { isAbsolute, join } from "node:path";
import { RunedError } from "./errors.js";

/** The most links that a path may lead through, as in the kernel. */
const MAX_LINKS = 40;

/** The files of a home that a client reads, runs or connects to, and the directories that hold them. */
const HOME_FILES =
  "bin cache cache.secret config.json config.lock daemon.json daemon.lock embedding.sock http.token install.lock installed.json licenses logs models run spawn.lock".split(
    " ",
  );

const REMEDY = "set RUNED_HOME to a place of your own";

const PARENT_REMEDY = `${REMEDY}, or set RUNED_TRUST_PARENTS=1 if you trust them`;

/**
 * Refuses a home in which another user has a hand, before anything of it is read, run or connected to.
 *
 * A missing home is fine, and so is a link of this user or of root to a home.
 *
 * @throws RunedError FOREIGN_PATH: The home is not a directory, or belongs to another user, or others can write to it or replace
 * it; or a file of runed in it belongs to another user.
 */
export function checkHome(home: string): void {
  const real = resolveTrusted(home);
  const stat = find(real, home);
  if (stat === undefined) {
    return;
  }
  if (!stat.isDirectory()) {
    throw foreign(`${home} is not a directory; move it away or set RUNED_HOME to another place`);
  }
  const own = process.geteuid?.();
  if (stat.uid !== own) {
    throw foreign(`${home} belongs to user id ${stat.uid}, and you are user id ${own}; ${REMEDY}`);
  }
  if ((stat.mode & 0o022) !== 0) {
    // Other users need a sticky directory, such as /tmp.
    const narrow = (stat.mode & 0o1000) !== 0 ? "" : `, or check what is in it and run \`chmod 700 ${home}\``;
    throw foreign(
      `others can write to ${home} (mode ${modeOf(stat)}), so nothing of it is used; ` +
        `set RUNED_HOME to a directory of its own${narrow}`,
    );
  }
  for (const name of HOME_FILES) {
    const found = find(join(real, name), home);
    if (found !== undefined && !isTrusted(found.uid)) {
      throw foreign(`${join(home, name)} belongs to user id ${found.uid}, so it is not used; remove it, or ${REMEDY}`);
    }
  }
}

/** Tells whether no other user can change a file. It follows links. */
export function mayRead(path: string): boolean {
  try {
    resolveTrusted(path);
    const stat = statSync(path);
    return isTrusted(stat.uid) && !isOpenToWriters(stat);
  } catch {
    return false;
  }
}

/**
 * Returns a path without links. It refuses one that another user can change on the way: each directory above the end of the path
 * must belong to this user or root, and others may write to it only if it is sticky, like /tmp.
 */
function resolveTrusted(path: string): string {
  let place = "/";
  const pending = parts(path);
  for (let links = 0; ; ) {
    const name = pending.shift();
    if (name === undefined) {
      return place;
    }
    checkParent(path, place);
    const next = join(place, name); // of "..", too: place has no links
    const stat = find(next, path);
    if (stat === undefined) {
      return join(next, ...pending);
    }
    if (!stat.isSymbolicLink()) {
      place = next;
      continue;
    }
    links += 1;
    if (links > MAX_LINKS || !isTrusted(stat.uid)) {
      throw foreign(`${next} is a link of user id ${stat.uid}, or one of too many links, on the way to ${path}; ${REMEDY}`);
    }
    const target = look(() => readlinkSync(next), path);
    place = isAbsolute(target) ? "/" : place;
    pending.unshift(...parts(target));
  }
}

/** Returns the names of which a path consists. */
function parts(path: string): string[] {
  return path.split("/").filter((name) => name !== "" && name !== ".");
}

function checkParent(path: string, parent: string): void {
  if (["1", "true", "yes", "on"].includes((process.env.RUNED_TRUST_PARENTS ?? "").toLowerCase())) {
    return;
  }
  const stat = look(() => lstatSync(parent), path);
  if (!stat.isDirectory()) {
    return; // as with HOME=/dev/null; nothing can be below it, and nobody may chmod /dev/null
  }
  if (!isTrusted(stat.uid)) {
    throw foreign(`${parent} belongs to user id ${stat.uid}, who could replace ${path}; ${PARENT_REMEDY}`);
  }
  if (isOpenToWriters(stat) && (stat.mode & 0o1000) === 0) {
    throw foreign(
      `others can write to ${parent} (mode ${modeOf(stat)}), and could replace ${path}; run \`chmod go-w ${parent}\`, ${PARENT_REMEDY}`,
    );
  }
}

/** Tells whether files of a user can be trusted: those of this user, and those of root. */
function isTrusted(uid: number): boolean {
  // In a user namespace without a root, all files of the real root belong to another user, and so does "/".
  return uid === process.geteuid?.() || uid === 0 || uid === statSync("/").uid;
}

/** Tells whether others than the owner and this user's own groups can write to a file or directory. */
function isOpenToWriters(stat: Stats): boolean {
  return ((stat.mode & 0o020) !== 0 && !isOwnGroup(stat.gid)) || (stat.mode & 0o002) !== 0;
}

/** Tells whether a group is that of this process, or that of this user's login, which newgrp does not change. */
function isOwnGroup(gid: number): boolean {
  try {
    return gid === process.getegid?.() || gid === userInfo().gid;
  } catch {
    return false; // the system does not know this user
  }
}

function modeOf(stat: Stats): string {
  return (stat.mode & 0o7777).toString(8).padStart(4, "0");
}

/** Returns what is at a place on the way to a path, without following a link; undefined if nothing is or can be there. */
function find(place: string, path: string): Stats | undefined {
  return look(() => {
    try {
      return lstatSync(place, { throwIfNoEntry: false });
    } catch (error) {
      // Node.js 20 throws this one, although nothing can be below a file.
      if ((error as NodeJS.ErrnoException).code === "ENOTDIR") {
        return undefined;
      }
      throw error;
    }
  }, path);
}

/** Looks at the file system, and turns its errors into ours. */
function look<T>(find: () => T, path: string): T {
  try {
    return find();
  } catch (error) {
    throw foreign(`${path} cannot be read: ${(error as NodeJS.ErrnoException).code}; ${REMEDY}`);
  }
}

function foreign(message: string): RunedError {
  return new RunedError("FOREIGN_PATH", message);
}
