import { connect, RunedError } from "runed-client";

const client = await connect(); // starts the daemon if none runs
const vector = await client.embed("how do I brew tea?", { role: "query" }); // a Float32Array
const vectors = await client.embedBatch(["green tea", "black tea"], { role: "document" });
console.log(vector.length, vectors.length);

const items = Object.entries({ a: "oolong", b: "" }); // or any other pairs of id and text, also asynchronous ones
for await (const [id, outcome] of client.embedStream(items)) {
  console.log(id, outcome instanceof RunedError ? outcome.reason : outcome.vector.length);
}
await client.close(); // the daemon goes on for others
