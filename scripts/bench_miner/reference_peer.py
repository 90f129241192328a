"""The reference: transformers in fp32 on the GGUF, in the environment of the peers.

    python -m scripts.bench_miner.reference_peer GGUF QUESTIONS.json FOLDER

Reads {"conversations": [[{"role", "content"}]], "strings": [str]}. Writes tokens.json at once,
then one file of arrays for each conversation, and says its name on the output when it is whole.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch  # type: ignore[import-not-found]
import transformers  # type: ignore[import-not-found]
from tokenizers import pre_tokenizers

from scripts.bench_miner.reference_protocol import NEW_TOKENS, choose_positions


def open_reference(gguf: Path) -> tuple[Any, Any]:
    """Model and tokenizer."""
    torch.set_grad_enabled(False)
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    # transformers leaves out the digits rule that the GGUF's splitter "smollm" stands for.
    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return model, tokenizer


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids, with nothing added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def answer(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, Any]:
    """The rendered prompt, its greedy answer, and logits at some positions of both together."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = encode(tokenizer, text)
    prompt = torch.tensor([ids])
    generated = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
    )
    positions = choose_positions(len(ids), generated.shape[1])
    kept = model(generated[:, :-1], logits_to_keep=torch.from_numpy(positions)).logits[0]
    return {
        "text": np.array(text),
        "ids": np.array(ids),
        "greedy": generated[0, len(ids) :].numpy(),
        "positions": positions,
        "logits": kept.numpy(),
    }


def main(arguments: list[str]) -> None:
    """Run the command."""
    gguf, questions_path, folder = map(Path, arguments)
    names = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    questions = json.loads(questions_path.read_text(encoding="utf-8"))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model, tokenizer = open_reference(gguf)
    ids = [encode(tokenizer, text) for text in questions["strings"]]
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in ids]
    (folder / "tokens.json").write_text(json.dumps({"ids": ids, "texts": texts}))
    print("tokens.json", file=names, flush=True)
    for number, messages in enumerate(questions["conversations"]):
        name = f"{number}.npz"
        np.savez(folder / name, **answer(model, tokenizer, messages))
        print(name, file=names, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
