// The official ollama package for Node, unchanged. GIVEN is a JSON object with `url`, `model`, `texts`, `vectors` and `tokens`.

import assert from "node:assert/strict";
import test from "node:test";
import { Ollama } from "ollama";

const { url, model, texts, vectors, tokens } = JSON.parse(process.env.GIVEN);
const client = new Ollama({ host: url });

const same = (got, expected) => assert.deepEqual(got.map(Math.fround), expected.map(Math.fround));

test("texts are embedded in order", async () => {
  const answer = await client.embed({ model, input: texts });
  answer.embeddings.forEach((vector, index) => same(vector, vectors[index]));
  assert.equal(answer.prompt_eval_count, tokens);
  same((await client.embeddings({ model, prompt: texts[0] })).embedding, vectors[0]);
});

test("models are listed and described", async () => {
  const { models } = await client.list();
  assert.ok(models.some((each) => each.model === model));
  assert.deepEqual((await client.ps()).models.map((each) => each.model), [model]);
  assert.deepEqual((await client.show({ model })).capabilities, ["embedding"]);
});

test("a pull ends with success", async () => {
  const steps = [];
  for await (const step of await client.pull({ model, stream: true })) {
    steps.push(step.status);
  }
  assert.equal(steps.at(-1), "success");
});

test("an unknown model is not found", async () => {
  await assert.rejects(client.embed({ model: "nothing", input: "x" }), { status_code: 404, error: /there is no model/ });
});
