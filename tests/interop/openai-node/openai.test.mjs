// What programs do with the official `openai` package; started by tests/interop/test_openai_programs.py.
//
// The environment variable GIVEN is a JSON object: `url`, `token`, `texts`, and of the same texts `vectors` and `short` vectors.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

const { url, token, texts, vectors, short, tokens } = JSON.parse(process.env.GIVEN);
const client = new OpenAI({ baseURL: url, apiKey: token });
const model = "text-embedding-3-small";

const embeddings = (answer) => answer.data.map((item) => item.embedding);
const inFloat32 = (vectors) => vectors.map((vector) => vector.map(Math.fround));

test("vectors by base64, which is the default, are those of the RPC", async () => {
  const answer = await client.embeddings.create({ input: texts, model });
  assert.deepEqual(embeddings(answer), vectors);
  assert.deepEqual(answer.usage, { prompt_tokens: tokens, total_tokens: tokens });
});

test("vectors as numbers are the same", async () => {
  const answer = await client.embeddings.create({ input: texts, model, encoding_format: "float" });
  assert.deepEqual(inFloat32(embeddings(answer)), vectors);
});

test("a single text, and fewer dimensions", async () => {
  const answer = await client.embeddings.create({ input: texts[0], model, dimensions: 32 });
  assert.deepEqual(embeddings(answer), [short[0]]);
});

test("the model is listed", async () => {
  const { data } = await client.models.list();
  const answer = await client.embeddings.create({ input: "x", model: data[0].id });
  assert.equal(answer.model, data[0].id);
  assert.equal((await client.models.retrieve(data[0].id)).id, data[0].id);
});

test("errors have their class, code and parameter", async () => {
  const refused = (call, kind, code, param) =>
    assert.rejects(call, (error) => {
      assert.ok(error instanceof kind, error);
      assert.equal(error.code, code);
      assert.equal(error.param, param);
      return true;
    });
  await refused(client.embeddings.create({ input: [[1, 2]], model }), OpenAI.BadRequestError, "INVALID_REQUEST", "input");
  await refused(client.embeddings.create({ input: "", model }), OpenAI.BadRequestError, "EMPTY_TEXT", "input");
  await refused(client.models.retrieve("none"), OpenAI.NotFoundError, "model_not_found", "model");
  const stranger = new OpenAI({ baseURL: url, apiKey: "wrong" });
  await refused(stranger.models.list(), OpenAI.AuthenticationError, "UNAUTHENTICATED", null);
});
