"""transformers in fp32 as the reference: `python transformers_reference.py MODEL.gguf`, a line in, a line out.

A question is {"messages": [{role, content}], "logits": FILE or null}; the answer {"ids", "ids_as_converted"}, and with
FILE the fp32 logits of `ids` as an array [tokens, vocabulary]. The tokenizer that transformers converts from GGUF lacks
the pre-tokeniser's rule that each digit stands alone (llama.cpp's `smollm`, and the model's own tokenizer.json), so
`ids` are those with the rule put back and `ids_as_converted` those without.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the packages print goes to standard error
    source = Path(sys.argv[1])
    converted = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    fixed = copy.deepcopy(converted)
    fixed.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    model.train(False)
    for line in sys.stdin:
        question = json.loads(line)
        text = converted.apply_chat_template(question["messages"], tokenize=False)
        ids, plain = (tool(text, add_special_tokens=False)["input_ids"] for tool in (fixed, converted))
        if question["logits"]:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            logits.float().numpy().astype(np.float32).tofile(question["logits"])
        answers.write(json.dumps({"ids": ids, "ids_as_converted": plain}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
