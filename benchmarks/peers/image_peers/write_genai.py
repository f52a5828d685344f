"""A bundle as onnxruntime-genai reads it: python write_genai.py BUNDLE FOLDER CONTEXT.

The graphs are joined and described as for the readers (`benchmarks/readers`), here with one buffer for the keys and
values of past and present, which that engine extends in place as ours does.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "readers"))
from joined_graphs import join
from read_genai import place_features, write_config, write_processor


def main() -> None:
    """Write what the command line asks for."""
    bundle, folder, context = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    shutil.copytree(bundle, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # A token that ends an answer has to be named: the last one, which no tokenizer has.
    job = {"image": config["image_token_id"], "stop": [config["text_config"]["vocab_size"] - 1]}
    columns = join(folder)
    place_features(folder / "onnx" / "embed_tokens.onnx", job["image"], columns)
    write_config(folder, columns, job)
    write_processor(folder)
    path = folder / "genai_config.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["model"]["context_length"] = context
    whole["search"]["past_present_share_buffer"] = True
    path.write_text(json.dumps(whole, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
