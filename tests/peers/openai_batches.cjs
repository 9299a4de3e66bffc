// The life of a batch, by OpenAI's own JavaScript client.
//
// node openai_batches.cjs http://127.0.0.1:PORT TOKEN

const assert = require("assert");
const { OpenAI, toFile } = require("openai");

const [base, token] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: token, timeout: 30_000 });
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const line = (n) => JSON.stringify({
  custom_id: `node-${n}`,
  method: "POST",
  url: "/v1/chat/completions",
  body: { model: "gpt-4.1-mini", max_tokens: 16, messages: [{ role: "user", content: `node ${n}` }] },
});

async function ended(id) {
  for (let tries = 0; tries < 300; tries += 1) {
    const batch = await client.batches.retrieve(id);
    if (["completed", "failed", "expired", "cancelled"].includes(batch.status)) return batch;
    await pause(200);
  }
  throw new Error(`${id} did not end`);
}

(async () => {
  const text = Array.from({ length: 20 }, (_, n) => line(n)).join("\n");
  const file = await client.files.create({ file: await toFile(Buffer.from(text), "node.jsonl"), purpose: "batch" });
  assert.strictEqual(await (await client.files.content(file.id)).text(), text);
  const batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" });
  const done = await ended(batch.id);
  assert.strictEqual(done.status, "completed");
  assert.deepStrictEqual(done.request_counts, { total: 20, completed: 20, failed: 0 });
  const output = await (await client.files.content(done.output_file_id)).text();
  const ids = output.trim().split("\n").map((answer) => JSON.parse(answer).custom_id);
  assert.strictEqual(new Set(ids).size, 20);
  const listed = [];
  for await (const one of client.batches.list({ limit: 1 })) listed.push(one.id);
  assert(listed.includes(batch.id));
  const other = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" });
  await client.batches.cancel(other.id).catch((error) => assert.strictEqual(error.status, 400));
  assert(["cancelled", "completed"].includes((await ended(other.id)).status));
  assert((await client.files.delete(file.id)).deleted);
  await assert.rejects(client.files.retrieve(file.id), { status: 404 });
  console.log("as it should be");
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
