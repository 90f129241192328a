"""Make tests/vectors/smollm2_135m_reference.json: what another implementation says.

Runs the same GGUF through PyTorch and transformers in fp32 and stores a few logits, greedy
continuations and tokenizations. Not part of the tests' own run, since it needs about 1 GB of
packages, which `make bench-miner` installs:

    make bench-miner ARGS=--quick
    build/peers/bin/python scripts/make_reference_vectors.py build/peers/models/smollm2-135m.gguf
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import tokenizers
import torch  # type: ignore[import-not-found]
import transformers  # type: ignore[import-not-found]
from tokenizers import pre_tokenizers

OUTPUT = Path(__file__).parent.parent / "tests" / "vectors" / "smollm2_135m_reference.json"
NEW_TOKENS = 32
SYSTEM = "Answer in one word."
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Write a haiku about the sea."}],
    [{"role": "user", "content": "def fibonacci(n):  # continue in Python"}],
    [{"role": "user", "content": "Compute 12 + 30, then explain why 1999 is prime."}],
    [{"role": "user", "content": "Grüße! ¿Qué tal? 你好 🦊 naïve café"}],
    [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Opposite of hot?"},
        {"role": "assistant", "content": "Cold"},
        {"role": "user", "content": "Opposite of night?"},
    ],
    [{"role": "user", "content": " ".join(f"{n} sheep jumped over the fence." for n in range(60))}],
]
CORPUS = [
    "",
    " ",
    "  two  spaces  ",
    "tab\tand\nnewline\r\n",
    "Hello, world!",
    "don't we'll I'VE they're",
    "12345 1,000.50 0x1F 3e-10",
    "a1b22c333",
    "²³½ ٣ 五",
    "Ünïcödé ß ﬁ \uff21",
    "e\u0301 combining",
    "日本語のテキスト",
    "한국어 텍스트",
    "Привет, мир",
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🇩🇪 🦊",
    "\u200b\u00a0\u3000odd spaces",
    "\x00\x01\x7f control",
    "def f(x):\n    return x ** 2\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|><|im_start|",
    "https://example.org/a?b=c&d=%20",
    "a" * 200,
    "ABCabcABC" * 5,
    "....!!!???---",
    '{"key": [1, 2, {"n": null}]}',
    "¡¿«»„“”\u2018\u2019—…",
    "\ufffd\ufffe\U0010ffff",
    "   \n\n   \n",
    "mixed العربية and עברית text",
]


def main() -> None:
    """Write the vector file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("gguf", type=Path)
    gguf: Path = parser.parse_args().gguf
    torch.set_grad_enabled(mode=False)
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    # transformers leaves out the digits rule that the GGUF's splitter "smollm" stands for.
    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    content = {
        "made_by": "scripts/make_reference_vectors.py",
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__}, fp32",
        "prompts": [reference(model, tokenizer, messages) for messages in CONVERSATIONS],
        "tokenizations": [
            {"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
            for text in CORPUS
        ],
    }
    OUTPUT.write_text(json.dumps(content, ensure_ascii=True) + "\n", encoding="ascii")


def reference(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Logits at three positions, and the greedy continuation."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = model(torch.tensor([ids])).logits[0].double()
    generated = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
    )
    return {
        "messages": messages,
        "text": text,
        "ids": ids,
        "positions": [position(logits, at) for at in (0, len(ids) // 2, len(ids) - 1)],
        "greedy": generated[0, len(ids) :].tolist(),
    }


def position(logits: Any, at: int) -> dict[str, Any]:
    """The ten best tokens, ten spread over the vocabulary, and the sum over all."""
    row = logits[at]
    spread = torch.arange(0, row.shape[0], row.shape[0] // 10)
    chosen = torch.cat([row.topk(10).indices, spread]).tolist()
    return {
        "at": at,
        "logits": {str(token): round(row[token].item(), 6) for token in chosen},
        "log_sum_exp": round(torch.logsumexp(row, 0).item(), 6),
    }


if __name__ == "__main__":
    main()
