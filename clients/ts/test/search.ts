import { readdir, readFile } from "node:fs/promises";
import { connect } from "runed-client";

const paragraphs: string[] = [];
for (const name of await readdir("notes")) {
  const text = await readFile(`notes/${name}`, "utf8");
  paragraphs.push(...text.split("\n\n").filter((paragraph) => paragraph.trim()));
}
const client = await connect();
const index = await client.embedBatch(paragraphs, { role: "document", truncate: "end" });
const query = await client.embed("How hot is the water for green tea?", { role: "query" });
const scores = index.map((vector) => vector.reduce((sum, value, i) => sum + value * (query[i] ?? 0), 0));
console.log(paragraphs[scores.indexOf(Math.max(...scores))]); // Green tea is steeped at 80 degrees.
await client.close();
