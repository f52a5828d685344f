// A bundle in transformers.js: node read_transformers_js.mjs JOB.json, in a folder where it is installed.
// Prompts and pictures are tensors already; the engine runs its own loop over the three graphs.
import { readFileSync } from "node:fs";
import path from "node:path";
import { env, AutoModelForImageTextToText, Tensor } from "@huggingface/transformers";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(job.folder);
const model = await AutoModelForImageTextToText.from_pretrained(path.basename(job.folder), { dtype: "fp32", device: "cpu" });
for (const record of job.records) {
  const length = record.ids.length;
  const whole = (values, shape) => new Tensor("int64", BigInt64Array.from(values.map(BigInt)), shape);
  const inputs = {
    input_ids: whole(record.ids, [1, length]),
    attention_mask: whole(record.ids.map(() => 1), [1, length]),
  };
  if (record.pixels) {
    const bytes = readFileSync(record.pixels);
    const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    inputs.pixel_values = new Tensor("float32", values, record.shape);
    inputs.image_grid_thw = whole(record.grid.flat(), [record.grid.length, 3]);
  }
  const found = await model.generate({
    ...inputs,
    max_new_tokens: job.new_tokens,
    do_sample: false,
    eos_token_id: job.stop,
  });
  const tokens = found.tolist()[0].slice(length).map(Number);
  console.log(JSON.stringify({ prompt_tokens: length, tokens }));
}
