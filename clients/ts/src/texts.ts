/** Texts before they are sent: whether they can be, and how many go into one request. */

import { RunedError } from "./errors.js";

/** UTF-8 bytes from which on a single text is compared with the daemon's limit before it is sent. */
export const LARGE_TEXT = 1024 * 1024;

/** Bytes at most beside the text itself for each text of an encoded batch: the tag and the length. */
export const TEXT_OVERHEAD = 6;

/**
 * Gives the texts of a batch as an array.
 *
 * @throws TypeError It is one text and not many.
 */
export function listed(texts: Iterable<string>): string[] {
  if (typeof texts === "string") {
    throw new TypeError("a batch is an iterable of strings, not one string; use embed for one text");
  }
  return [...texts];
}

/**
 * Gives the length of a text in UTF-8.
 *
 * @param text - The text.
 * @param name - What an error calls it.
 * @param where - What the metadata of an error tells of its place.
 * @throws TypeError It is no text. RunedError INVALID_TEXT: It is not valid Unicode.
 */
export function encodedLength(text: string, name = "the text", where: Record<string, string> = {}): number {
  if (typeof text !== "string") {
    throw new TypeError(`${name} is of type ${typeof text}, but must be a string`);
  }
  if (!text.isWellFormed()) {
    throw new RunedError(
      "INVALID_TEXT",
      `${name} is not valid Unicode: it has half of a surrogate pair; it was most likely cut in the middle of a character`,
      { metadata: where },
    );
  }
  return Buffer.byteLength(text);
}

/**
 * Makes sure that a text fits into a request of its own.
 *
 * @throws RunedError REQUEST_TOO_LARGE: It does not.
 */
export function checkLength(length: number, limit: number, name = "the text", where: Record<string, string> = {}): void {
  if (length > limit) {
    throw new RunedError(
      "REQUEST_TOO_LARGE",
      `${name} has ${length} bytes, but one request may have ${limit}; no model reads as much, so cut it into passages`,
      { metadata: { limit: String(limit), ...where } },
    );
  }
}

/**
 * Gives the bytes that a text of a batch takes of a request.
 *
 * @param text - The text.
 * @param index - Its place in the batch.
 * @param maxBytes - The bytes that all texts of one request may take.
 * @throws As `encodedLength` and `checkLength`.
 */
export function measure(text: string, index: number, maxBytes: number): number {
  const name = `text ${index} of the batch`;
  const where = { index: String(index) };
  const length = encodedLength(text, name, where) + TEXT_OVERHEAD;
  checkLength(length, maxBytes, name, where);
  return length;
}

/**
 * Cuts a batch into requests that keep to the daemon's limits.
 *
 * @param lengths - What `measure` gave for each text; none at all give no request.
 * @param maxTexts - The texts that one request may have.
 * @param maxBytes - The bytes that they may take.
 * @returns Where each request starts and where it ends, as for a slice.
 */
export function* split(lengths: readonly number[], maxTexts: number, maxBytes: number): Generator<[number, number]> {
  let start = 0;
  let size = 0;
  for (const [index, length] of lengths.entries()) {
    if (index - start === maxTexts || size + length > maxBytes) {
      yield [start, index];
      [start, size] = [index, 0];
    }
    size += length;
  }
  if (lengths.length > 0) {
    yield [start, lengths.length];
  }
}

/** Says where in the caller's batch a text stands that the daemon refused as part of one request. */
export function relocated(error: unknown, start: number, count: number): unknown {
  if (!(error instanceof RunedError) || start === 0 || error.metadata.index === undefined) {
    return error;
  }
  const { reason, code, metadata, retryAfterMs } = error;
  return new RunedError(
    reason,
    `in the request that starts with text ${start} of the batch, ${count} texts long: ${error.message}`,
    { code, metadata: { ...metadata, index: String(start + Number(metadata.index)) }, retryAfterMs },
  );
}
