"""llama.cpp's converter for a tokenizer that it does not know: python write_gguf.py SOURCES CHECKPOINT [ARGUMENTS].

It tells tokenizers by what they make of a text, and the small one of `examples/tiny/model` is not in its list. Both
that one and Qwen3's split text by the rule that llama.cpp calls "qwen2".
"""

from __future__ import annotations

import sys


def main() -> None:
    """Convert as the command line asks for."""
    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]
    import convert_hf_to_gguf  # type: ignore[import-not-found, unused-ignore]
    from conversion.base import TextModel  # type: ignore[import-not-found, unused-ignore]

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    del sys.argv[1]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
