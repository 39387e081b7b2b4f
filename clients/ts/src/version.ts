/** The version of this client, and how versions are compared. */

/** The release that this client belongs to, the same as that of the daemon and of the other clients. */
export const VERSION = "0.1.0";

/**
 * Tells whether a version is older than another.
 *
 * The numbers count. A pre-release counts as its release, so that two pre-releases never replace each other for ever.
 */
export function isOlder(version: string, than: string): boolean {
  const [own, other] = [release(version), release(than)];
  for (const [index, number] of other.entries()) {
    const difference = (own[index] ?? -1) - number;
    if (difference !== 0) {
      return difference < 0;
    }
  }
  return false;
}

function release(version: string): number[] {
  const numbers = /^\d+(\.\d+)*/.exec(version)?.[0];
  return numbers === undefined ? [] : numbers.split(".").map(Number);
}
