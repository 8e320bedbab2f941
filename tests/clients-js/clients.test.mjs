// The official JavaScript clients against a running server, whose address is in SATCHEL_URL.
import assert from "node:assert/strict";
import { test } from "node:test";

import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import OpenAI from "openai";

const url = process.env.SATCHEL_URL;
const hi = [{ role: "user", content: "hi" }];
const native = new Ollama({ host: url });
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "unused", maxRetries: 0 });
const parameters = { type: "object", properties: { city: { type: "string" } } };

async function joined(stream, piece) {
  let text = "";
  for await (const part of stream) text += piece(part) ?? "";
  return text;
}

test("ollama generates, chats, lists, shows", async () => {
  assert.equal((await native.generate({ model: "tiny", prompt: "hi" })).response, "Hello world");
  const stream = await native.chat({ model: "tiny", messages: hi, stream: true });
  assert.equal(await joined(stream, (part) => part.message.content), "Hello world");
  const names = (await native.list()).models.map((model) => model.name);
  assert.deepEqual(names.sort(), ["caller:latest", "tiny:latest"]);
  assert.deepEqual((await native.show({ model: "tiny" })).capabilities, ["completion"]);
  assert.equal((await native.ps()).models[0].name, "tiny:latest");
  await assert.rejects(native.chat({ model: "absent", messages: hi }), /model 'absent' not found/);
});

test("openai chats and completes", async () => {
  const whole = await openai.chat.completions.create({ model: "tiny", messages: hi });
  assert.equal(whole.choices[0].message.content, "Hello world");
  const stream = await openai.chat.completions.create({
    model: "tiny",
    messages: hi,
    stream: true,
    stream_options: { include_usage: true },
  });
  assert.equal(await joined(stream, (part) => part.choices[0]?.delta.content), "Hello world");
  const completion = await openai.completions.create({ model: "tiny", prompt: ["a", "b"] });
  assert.deepEqual(completion.choices.map((one) => one.text), ["Hello world", "Hello world"]);
  await assert.rejects(
    openai.chat.completions.create({ model: "absent", messages: hi }),
    OpenAI.NotFoundError,
  );
});

test("openai answers and streams responses", async () => {
  const whole = await openai.responses.create({ model: "tiny", input: "hi" });
  assert.equal(whole.output_text, "Hello world");
  const stream = openai.responses.stream({ model: "tiny", input: "hi" });
  const final = await stream.finalResponse();
  assert.equal(final.status, "completed");
  assert.equal(final.output[0].content[0].text, "Hello world");
});

test("anthropic answers, streams and counts", async () => {
  const ask = { model: "tiny", max_tokens: 64, messages: hi };
  assert.equal((await anthropic.messages.create(ask)).content[0].text, "Hello world");
  const final = await anthropic.messages.stream(ask).finalMessage();
  assert.equal(final.content[0].text, "Hello world");
  assert.equal(final.stop_reason, "end_turn");
  const { input_tokens } = await anthropic.messages.countTokens({ model: "tiny", messages: hi });
  assert.equal(input_tokens, final.usage.input_tokens);
  await assert.rejects(
    anthropic.messages.create({ ...ask, model: "absent" }),
    Anthropic.NotFoundError,
  );
});

test("each client gets a tool call", async () => {
  const described = { name: "weather", description: "The weather of a city.", parameters };
  const tools = [{ type: "function", function: described }];
  const chat = await native.chat({ model: "caller", messages: hi, tools });
  assert.deepEqual(chat.message.tool_calls[0].function.arguments, { city: "Lima" });
  const completion = await openai.chat.completions.create({ model: "caller", messages: hi, tools });
  assert.equal(completion.choices[0].finish_reason, "tool_calls");
  const message = await anthropic.messages
    .stream({
      model: "caller",
      max_tokens: 64,
      messages: hi,
      tools: [{ name: "weather", input_schema: parameters }],
    })
    .finalMessage();
  assert.deepEqual(message.content.at(-1).input, { city: "Lima" });
});
