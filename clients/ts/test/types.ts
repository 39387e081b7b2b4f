/** The uses of the public types that the compiler must accept and refuse. Nothing here runs. */

import {
  type Client,
  connect,
  type Embedding,
  type ErrorCode,
  type Health,
  type Info,
  type Outcome,
  RunedError,
} from "runed-client";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(_: Same<A, B>): void => {};

export async function accepted(client: Client, controller: AbortController): Promise<void> {
  const vector = await client.embed("a", { role: "query", instruction: "Find", dimensions: 64, truncate: "end", lane: "bulk" });
  same<typeof vector, Float32Array>(true);
  await client.embedBatch(new Set(["a"]), { signal: controller.signal, timeoutMs: 5, role: undefined });
  const outcomes: Outcome[] = await client.embedItems(["a"], { withRoute: true });
  for (const outcome of outcomes) {
    if (outcome instanceof RunedError) {
      same<typeof outcome.code, ErrorCode>(true);
      const reason: string = outcome.reason;
      outcome.reason === ("TEXT_TOO_LONG" satisfies typeof outcome.reason);
      console.log(reason, outcome.metadata.limit, outcome.retryAfterMs?.toFixed());
    } else {
      same<typeof outcome, Embedding>(true);
      same<typeof outcome.clusterId, number | undefined>(true);
    }
  }
  for await (const [id, outcome] of client.embedStream([["any id", "a"]] as const)) {
    same<typeof id, "any id">(true);
    same<typeof outcome, Outcome>(true);
  }
  for await (const [id] of client.embedStream(new Map([[7, "seven"]]))) {
    same<typeof id, number>(true);
  }
  const info: Info = await client.info();
  same<typeof info.maxRequestBytes, number>(true);
  const health: Health = await client.health();
  same<typeof health.uptimeSeconds, number>(true);
  health.status === ("IDLE" satisfies typeof health.status);
  await client.setCentroids([new Float32Array(2), [1, 2]], { preset: "p" });
  await using other = await connect({
    home: "/h",
    spawn: true,
    protocol: "grpcweb",
    onProgress: ({ phase }) => console.log(phase),
  });
  await other.shutdown({ graceSeconds: 1 });
}

export async function refused(client: Client): Promise<void> {
  // @ts-expect-error: there is no such role
  await client.embed("a", { role: "question" });
  // @ts-expect-error: there is no such option
  await client.embed("a", { dimension: 64 });
  // @ts-expect-error: a route is told by embedItems
  await client.embed("a", { withRoute: true });
  // @ts-expect-error: a text is no number
  await client.embedBatch([1]);
  // @ts-expect-error: a stream takes pairs
  client.embedStream(["a"]);
  // @ts-expect-error: there is no such protocol
  await connect({ protocol: "http" });
  // @ts-expect-error: what was told does not change
  (await client.info()).vectorDim = 7;
  // @ts-expect-error: the protobuf message stays inside
  console.log((await client.info()).$typeName);
}
