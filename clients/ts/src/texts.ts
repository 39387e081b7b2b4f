/** Checks of texts before they are sent, and how many go into one request. */

import { create, type DescMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { RunedError } from "./errors.js";
import { TEXT_OVERHEAD } from "./policy.js";

/** Returns the bytes of an encoded message. */
export function sizeOf<Desc extends DescMessage>(schema: Desc, fields: MessageInitShape<Desc>): number {
  return toBinary(schema, create(schema, fields)).length;
}

/**
 * Copies the texts of a batch into an array.
 *
 * @throws TypeError `texts` is one text.
 */
export function listed(texts: Iterable<string>): string[] {
  if (typeof texts === "string") {
    throw new TypeError("a batch is an iterable of strings, not one string; use embed for one text");
  }
  return [...texts];
}

/**
 * Returns the bytes of a text in UTF-8.
 *
 * @param text - The text.
 * @param name - The name of the text in an error's message.
 * @param where - The place of the text in an error's metadata.
 * @throws TypeError The text is not a string. RunedError INVALID_TEXT: It is not valid Unicode.
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
 * @throws RunedError REQUEST_TOO_LARGE: The text is too large.
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
 * Returns the bytes that a text of a batch takes of a request.
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
 * @param lengths - The result of `measure` for each text. Without texts there is no request.
 * @param maxTexts - The texts that one request may have.
 * @param maxBytes - The bytes that they may take.
 * @returns The places where each request starts and ends, as for `slice`.
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

/** Tells the place in the caller's batch of a text that the daemon refused as part of one request. */
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
