import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { connect } from "runed-client";

const [folder = "notes", question = "How hot is the water for green tea?"] = process.argv.slice(2);
const passages = [];
for (const name of await readdir(folder, { recursive: true })) {
  if (!name.endsWith(".md")) continue;
  const text = await readFile(join(folder, name), "utf8");
  passages.push(...text.split("\n\n").filter((passage) => passage.trim()));
}

const client = await connect(); // starts the daemon if none runs
const documents = await client.embedBatch(passages, { role: "document", truncate: "end" });
const query = await client.embed(question, { role: "query" });
await client.close();
const scores = documents.map((document) => document.reduce((sum, value, i) => sum + value * (query[i] ?? 0), 0));
const found = passages.map((text, i) => ({ text, score: scores[i] ?? 0 })).sort((a, b) => b.score - a.score);

console.log(`Answer from these passages: ${question}`);
for (const { text } of found.slice(0, 3)) console.log(`\n${text.trim()}`);
