// The npm package `openai`, unmodified, against the real daemon at ATELIER_BASE_URL.

import assert from "node:assert/strict";
import test from "node:test";

import OpenAI, { toFile } from "openai";

const client = new OpenAI({ apiKey: "none", baseURL: `${process.env.ATELIER_BASE_URL}/v1`, maxRetries: 0, timeout: 60_000 });
const photo = Buffer.from(process.env.ATELIER_PHOTO, "base64");
const isPng = (text) => Buffer.from(text, "base64").subarray(1, 4).toString() === "PNG";

test("a picture is generated", async () => {
  const answer = await client.images.generate({ model: "gpt-image-1", prompt: "from node", size: "96x64", n: 2, seed: 0 });
  assert.deepEqual(answer.data.map((one) => isPng(one.b64_json)), [true, true]);
  assert.equal(answer.size, "96x64");
});

test("pictures are edited", async () => {
  const file = () => toFile(photo, "photo.png", { type: "image/png" });
  const one = await client.images.edit({ model: "fake", image: await file(), prompt: "one from node" });
  assert.ok(isPng(one.data[0].b64_json));
  const two = await client.images.edit({ model: "fake", image: [await file(), await file()], prompt: "two from node" });
  assert.ok(isPng(two.data[0].b64_json));
});

test("a stream ends with the picture", async () => {
  const stream = await client.images.generate({ prompt: "in a stream from node", stream: true, partial_images: 1 });
  let last;
  for await (const event of stream) last = event;
  assert.equal(last.type, "image_generation.completed");
  assert.ok(isPng(last.b64_json));
});

test("models are listed", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes("fake"));
  assert.equal((await client.models.retrieve("fake")).object, "model");
});

test("errors are the package's own", async () => {
  await assert.rejects(client.images.generate({ prompt: "x", size: "big" }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.param, error.code], ["size", "invalid_params"]);
    return true;
  });
  await assert.rejects(client.images.generate({ prompt: "x", model: "nonesuch" }), OpenAI.NotFoundError);
});
