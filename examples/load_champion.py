"""Load the champion of a pipeline in plain transformers and let it continue a text.

    python examples/load_champion.py [PIPELINE] [PROMPT]

Nothing of Nightmill is imported: the pointer is JSON, the model a Hugging Face folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer


def champion_folder(pipeline: str) -> Path:
    """The folder of the model that is champion now."""
    workspace = Path(os.environ.get("NIGHTMILL_HOME", "var")) / "workspaces" / pipeline
    pointer = json.loads((workspace / "champion.json").read_text())
    return workspace / pointer["address"] / "data"


def main() -> None:
    pipeline = sys.argv[1] if len(sys.argv) > 1 else "demo"
    prompt = sys.argv[2] if len(sys.argv) > 2 else "Python is"
    folder = champion_folder(pipeline)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, max_new_tokens=40, do_sample=True, top_k=40, temperature=0.8)
    print(f"{folder}\n{tokenizer.decode(out[0], skip_special_tokens=True)}")


if __name__ == "__main__":
    main()
