// Greedy text generation by transformers.js from local files: node text.mjs PARENT FOLDER "[ids]" COUNT
// Prints {"tokens", "following"}: the new tokens, and the rotary position that the first of them was given.
import { env, AutoModelForImageTextToText, Tensor } from "@huggingface/transformers";

const [parent, folder, prompt, count] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = parent;
const model = await AutoModelForImageTextToText.from_pretrained(folder, { dtype: "fp32", device: "cpu" });
const decoder = model.sessions.decoder_model_merged;
const run = decoder.run.bind(decoder);
const positions = [];
decoder.run = (feeds, ...rest) => {
  positions.push(Number(feeds.position_ids.data[0]));
  return run(feeds, ...rest);
};
const ids = JSON.parse(prompt).map(BigInt);
const tensor = (values) => new Tensor("int64", BigInt64Array.from(values), [1, ids.length]);
const output = await model.generate({
  input_ids: tensor(ids),
  attention_mask: tensor(ids.map(() => 1n)),
  max_new_tokens: Number(count),
  do_sample: false,
  eos_token_id: [-1],
});
const tokens = output.tolist()[0].slice(ids.length).map(Number);
console.log(JSON.stringify({ tokens, following: positions[1] }));
