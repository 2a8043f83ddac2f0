// Vercel's AI SDK: the same calls through OpenAI's chat completions and responses, and Anthropic's messages.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.NODE_PATH}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { generateText, streamText, jsonSchema, Output, stepCountIs, tool } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createAnthropic } = await load("@ai-sdk/anthropic");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");

globalThis.AI_SDK_LOG_WARNINGS = false;
const [base, apiKey, question] = process.argv.slice(2);
const settings = { baseURL: `${base}/v1`, apiKey };
const openai = createOpenAI(settings);
const anthropic = createAnthropic(settings);
const compatible = createOpenAICompatible({ name: "motes", ...settings });
const providers = {
  chat: (model) => openai.chat(model),
  compatible: (model) => compatible(model),
  responses: (model) => openai(model), // its default
  messages: (model) => anthropic(model),
};
const unstored = { openai: { store: false, reasoningSummary: "auto", forceReasoning: true } };
const schema = jsonSchema({
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
});

const results = {};
async function call(name, work) {
  try {
    results[name] = await work();
  } catch (error) {
    results[name] = `${error.name}: ${error.statusCode} ${error.message}`;
  }
}

async function streamed(options) {
  const stream = streamText({ ...options, onError() {} });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  return text;
}

async function conversation(options) {
  const first = await generateText({ ...options, prompt: question });
  const user = { role: "user", content: question };
  return (await generateText({ ...options, messages: [user, ...first.response.messages, user] })).text;
}

async function useTool(model) {
  const made = [];
  const weather = tool({
    description: "The weather of a city.",
    inputSchema: schema,
    execute: async ({ city }) => {
      made.push(city);
      return `sunny in ${city}`;
    },
  });
  const options = { model, maxRetries: 0, providerOptions: unstored, prompt: "Paris?", tools: { weather } };
  return [(await generateText({ ...options, stopWhen: stepCountIs(3) })).text, made];
}

for (const [name, make] of Object.entries(providers)) {
  const story = { model: make("story"), maxRetries: 0 };
  const thinking = { model: make("thinking"), maxRetries: 0, providerOptions: unstored };
  const caller = make("caller");
  await call(`${name}: generate`, async () => (await generateText({ ...story, system: "Be kind.", prompt: question })).text);
  await call(`${name}: stream`, () => streamed({ ...story, prompt: question }));
  await call(`${name}: usage`, async () => (await generateText({ ...story, prompt: question })).usage.outputTokens > 0);
  await call(`${name}: conversation`, () => conversation({ ...story, providerOptions: unstored }));
  await call(`${name}: thoughts`, async () => (await generateText({ ...thinking, prompt: question })).reasoningText ?? null);
  await call(`${name}: thoughts sent back`, async () => (await conversation(thinking)).slice(0, 6));
  await call(`${name}: tools`, () => useTool(caller));
  await call(`${name}: structure`, async () => {
    const output = Output.object({ schema });
    return (await generateText({ model: caller, maxRetries: 0, prompt: "Where?", output })).output.city;
  });
  await call(`${name}: no such model`, async () => (await generateText({ model: make("other"), maxRetries: 0, prompt: "?" })).text);
}
await call("responses: stored conversation", () => conversation({ model: openai("story"), maxRetries: 0 }));
console.log(`\n${JSON.stringify(results)}`);
