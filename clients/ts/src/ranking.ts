/** Ranking: the options, the results, and the flow of a rerank. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import { SpaceGuard } from "./answers.js";
import type { Calls } from "./calls.js";
import { RunedError } from "./errors.js";
import type { RerankRequestSchema, RerankResponse } from "./gen/runed/v1/runed_pb.js";
import { type CallOptions, type Lane, modelName, queueFields, type Truncate } from "./options.js";
import { checkLength, encodedLength, listed, measure, relocated, split } from "./texts.js";
import type { Deadline } from "./waiting.js";

/** The options of `Client.rerank`. */
export interface RerankOptions extends CallOptions {
  /** The most results; by default all documents. */
  topN?: number | undefined;
  /** The name of a reranker; by default the daemon's only one. */
  model?: string | undefined;
  /**
   * "none", the default, refuses a document that, together with the query, is longer than the model reads. "end" and "start" cut
   * that part of the document off. The query is never cut.
   */
  truncate?: Truncate | undefined;
  /** As `EmbedOptions.lane`. */
  lane?: Lane | undefined;
}

/** One document in its place. */
export interface RankedDocument {
  /** The place of the document among those of the call. */
  index: number;
  /** The relevance, from 0 to 1. */
  score: number;
  /** The document. */
  document: string;
  /** The number of tokens that the model read: those of the query, of the document, and special ones. */
  tokenCount: number;
  /** The number of tokens before anything was cut off. */
  totalTokenCount: number;
  /** Whether something was cut off. */
  truncated: boolean;
  /** Whether the score was not computed for this call. */
  cached: boolean;
}

/** The room for texts in one request. */
export interface Room {
  maxTexts: number;
  maxBytes: number;
}

/** Calls a function with the room that one request has besides the fields that all requests of the call share. */
type Within = <T>(fields: Fields, send: (room: Room) => Promise<T>) => Promise<T>;

type Fields = MessageInitShape<typeof RerankRequestSchema> & { model: string };

/** Ranks documents by their relevance to a query; see `Client.rerank`. */
export async function rerank(
  calls: Calls,
  within: Within,
  deadline: Deadline,
  query: string,
  documents: Iterable<string>,
  options: RerankOptions,
): Promise<RankedDocument[]> {
  const { topN } = options;
  const model = modelName(options);
  if (topN !== undefined && !(Number.isInteger(topN) && topN >= 1)) {
    throw new RunedError("INVALID_REQUEST", `topN is ${topN}; give a whole number from 1 on, or none for all documents`);
  }
  const length = encodedLength(query, "query");
  const fields = { query, model, topN: topN ?? 0, ...queueFields(options) };
  const list = listed(documents);
  if (list.length === 0) {
    return [];
  }
  const results = await within(fields, async ({ maxTexts, maxBytes }) => {
    checkLength(2 * length, maxBytes + length, "query");
    const lengths = list.map((text, index) => measure(text, index, maxBytes));
    const ranked: RankedDocument[] = [];
    const space = new SpaceGuard();
    for (const [start, end] of split(lengths, maxTexts, maxBytes)) {
      const request = { ...fields, documents: list.slice(start, end) };
      const response = await calls
        .sendWhenReady(deadline, model || undefined, (rpc, rpcOptions) => rpc.rerank(request, rpcOptions))
        .catch((error: unknown) => {
          throw relocated(error, start, end - start);
        });
      space.check(response.fingerprint);
      ranked.push(...read(response, request.documents, start, topN ?? end - start));
    }
    return ranked;
  });
  results.sort((one, other) => other.score - one.score); // for several requests; the order of equal ones is kept
  return results.slice(0, topN);
}

function read(response: RerankResponse, documents: readonly string[], start: number, topN: number): RankedDocument[] {
  const isForeign = response.results.some(({ index }) => index >= documents.length);
  if (isForeign || response.results.length !== Math.min(topN, documents.length)) {
    throw new RunedError("INTERNAL", "the daemon ranked other documents than were asked for; send them again");
  }
  return response.results.map(({ index, score, tokenCount, totalTokenCount, truncated, cached }) => ({
    index: start + index,
    score,
    document: documents[index] as string,
    tokenCount,
    totalTokenCount,
    truncated,
    cached,
  }));
}
