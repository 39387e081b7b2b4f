/**
 * The conformance driver of TypeScript: calls come as JSON lines on the standard input, results go as such to the standard output.
 *
 *     node clients/ts/build/test/conformance.js (--socket PATH | --connect) [--protocol connect|grpc|grpcweb]
 *
 * after `npm run build:test` in clients/ts. With `--connect` it finds or starts the daemon as every client does. Calls and results
 * are those of tests/conformance/driver.py.
 */

import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { type Client, connect, type EmbedOptions, type Outcome, type Protocol, RunedError } from "runed-client";

type Text = string | { repeat: string; times: number };

interface Args {
  text: Text;
  texts: Text[];
  items: [string, Text][];
  vectors: number[][];
  preset: string;
  version: string;
  query: string;
  documents: Text[];
  top_n?: number;
  with_route?: boolean;
  timeout_ms?: number;
}

interface Call {
  id: string;
  call: string;
  args?: Args;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { socket: { type: "string" }, connect: { type: "boolean" }, protocol: { type: "string", default: "connect" } },
  });
  if ((values.socket === undefined) === (values.connect === undefined)) {
    throw new TypeError("give --socket PATH or --connect");
  }
  const client = await connect({ socketPath: values.socket, protocol: values.protocol as Protocol });
  for await (const line of createInterface({ input: process.stdin })) {
    const { id, call, args } = JSON.parse(line) as Call;
    const answer = await result(client, call, args ?? ({} as Args)).then(
      (value) => ({ result: value }),
      (thrown: unknown) => ({ error: error(thrown) }),
    );
    process.stdout.write(`${JSON.stringify({ id, ...answer })}\n`);
  }
  await client.close();
}

async function result(client: Client, call: string, args: Args): Promise<unknown> {
  const { text, texts, items, vectors, preset, version, query, documents, top_n: topN, ...named } = args;
  const { with_route: withRoute, timeout_ms: timeoutMs, ...others } = named;
  const options: EmbedOptions = { timeoutMs, ...others };
  switch (call) {
    case "embed": {
      // `embed` returns the vector alone. The details come by another call, whose vector must be the same.
      const vector = await client.embed(written(text), options);
      const [item] = await client.embedItems([written(text)], { ...options, withRoute });
      if (item === undefined || item instanceof RunedError) {
        throw item;
      }
      if (Buffer.compare(Buffer.from(vector.buffer), Buffer.from(item.vector.buffer)) !== 0) {
        throw new Error("embed and embedItems gave different vectors");
      }
      return read(item);
    }
    case "embed_batch":
      return {
        items: (await client.embedBatch(texts.map(written), options)).map((vector) => ({ vector: Array.from(vector) })),
      };
    case "embed_items":
      return { items: (await client.embedItems(texts.map(written), { ...options, withRoute })).map(read) };
    case "embed_stream": {
      const outcomes: Record<string, unknown> = {};
      for await (const [id, outcome] of client.embedStream(
        items.map(([id, text]) => [id, written(text)] as const),
        options,
      )) {
        outcomes[id] = read(outcome);
      }
      return { items: outcomes };
    }
    case "count_tokens":
      return { counts: await client.countTokens(texts.map(written), options) };
    case "rerank": {
      const ranked = await client.rerank(query, documents.map(written), { ...options, topN });
      return { results: ranked.map(({ cached, ...facts }) => renamed(facts)) };
    }
    case "warm_up":
      await client.warmUp(options);
      return {};
    case "info":
      return renamed({ ...(await client.info(options)) });
    case "health": {
      const health = await client.health(options);
      const phase = health.phase === undefined ? null : `PHASE_${health.phase}`;
      return renamed({ ...health, status: `STATUS_${health.status}`, phase });
    }
    case "set_centroids":
      return await client.setCentroids(vectors, { ...options, preset, version });
    default:
      throw new TypeError(`there is no call ${call}`);
  }
}

/** Returns a text, which the table may write as `{"repeat": ..., "times": ...}`. */
function written(text: Text): string {
  return typeof text === "string" ? text : text.repeat.repeat(text.times);
}

function read(outcome: Outcome): Record<string, unknown> {
  return outcome instanceof RunedError
    ? { error: error(outcome) }
    : renamed({ ...outcome, vector: Array.from(outcome.vector) });
}

function error(thrown: unknown): Record<string, unknown> {
  if (!(thrown instanceof RunedError)) {
    throw thrown;
  }
  return { reason: thrown.reason, metadata: thrown.metadata };
}

/** Names fields as the contract does. */
function renamed(fields: Record<string, unknown>): Record<string, unknown> {
  const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  return Object.fromEntries(Object.entries(fields).map(([name, value]) => [snake(name), value]));
}

await main();
