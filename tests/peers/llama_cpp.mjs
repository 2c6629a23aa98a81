// Greedy continuations and tokenisation by llama.cpp, through node-llama-cpp's prebuilt library.
//
//   node llama_cpp.mjs MODEL.gguf < requests.json > answers.json
//
// A request is {"ids": [..], "n": 32} or {"text": "..", "special": false}; an answer is
// {"ids": [..], "text": ".."} or {"ids": [..]}. Run it where node_modules has node-llama-cpp; see README.md.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(process.cwd() + "/"));
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(require.resolve("node-llama-cpp")));

const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, logLevel: LlamaLogLevel.warn });
const model = await llama.loadModel({ modelPath: process.argv[2], gpuLayers: 0 });
const requests = JSON.parse(readFileSync(0, "utf8"));
let sequence;
const answers = [];
for (const request of requests) {
  if (request.text !== undefined) {
    answers.push({ ids: [...model.tokenize(request.text, request.special ?? false)] });
    continue;
  }
  if (!sequence) {
    // In f32 as flm: the default cache is f16. More threads would wait for each other on a busy machine.
    const context = await model.createContext({
      contextSize: 512, threads: 1, flashAttention: false,
      experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
    });
    sequence = context.getSequence();
  }
  await sequence.clearHistory();
  const ids = [];
  for await (const id of sequence.evaluate(request.ids, { temperature: 0, yieldEogToken: true })) {
    ids.push(id);
    if (ids.length >= request.n || model.isEogToken(id)) break;
  }
  answers.push({ ids, text: model.detokenize(ids) });
}
const { metadata } = model.fileInfo;
process.stdout.write(JSON.stringify({
  architecture: metadata.general.architecture, release: llama.llamaCppRelease.release, answers,
}));
process.exit(0);
