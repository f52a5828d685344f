// Bundles in transformers.js: node read_transformers_js.mjs JOB.json ..., in a folder where it is installed.
// Answered are the job's tensors, for its own processor resizes in another way; that one counts the prompts. The engine
// runs its own loop over the three graphs.
import { readFileSync } from "node:fs";
import path from "node:path";
import { env, AutoModelForImageTextToText, AutoProcessor, RawImage, Tensor } from "@huggingface/transformers";

const tell = (found) => console.log(JSON.stringify(found));
const KINDS = { float32: Float32Array, int32: Int32Array, int64: BigInt64Array };
const PICTURES_FIRST = ["llava"];
const whole = (values, shape) => new Tensor("int64", BigInt64Array.from(values.map(BigInt)), shape);

function stored({ file, dtype, shape }) {
  const bytes = readFileSync(file);
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  return new Tensor(dtype, new KINDS[dtype](buffer), shape);
}

async function answer(job) {
  env.localModelPath = path.dirname(job.folder);
  const name = path.basename(job.folder);
  const model = await AutoModelForImageTextToText.from_pretrained(name, { dtype: "fp32", device: "cpu" });
  const processor = await AutoProcessor.from_pretrained(name);
  for (const record of job.records) {
    const length = record.ids.length;
    const arrays = Object.entries(record.arrays).map(([name, told]) => [name, stored(told)]);
    const found = await model.generate({
      input_ids: whole(record.ids, [1, length]),
      attention_mask: whole(record.ids.map(() => 1), [1, length]),
      ...Object.fromEntries(arrays),
      max_new_tokens: job.new_tokens,
      do_sample: false,
      eos_token_id: job.stop,
    });
    const given = [record.prompt, await RawImage.read(record.picture)];
    const own = await processor(...(PICTURES_FIRST.includes(model.config.model_type) ? given.reverse() : given));
    tell({ prompt_tokens: own.input_ids.dims[1], tokens: found.tolist()[0].slice(length).map(Number) });
  }
}

env.allowRemoteModels = false;
tell({ versions: { "transformers.js": env.version } });
for (const file of process.argv.slice(2)) {
  tell({ job: file });
  try {
    await answer(JSON.parse(readFileSync(file, "utf8")));
  } catch (error) {
    console.error(error);
    tell({ error: String(error) });
  }
}
