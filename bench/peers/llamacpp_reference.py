"""llama.cpp as the reference for GGUF files: `python llamacpp_reference.py`, a line of JSON in, a line out.

{"gguf", "ids": [...], "tokens": N, "logits": FILE or null}: the answer {"ids"} has the N tokens it is surest of one
after the other, and FILE the logits of the given ids, float32 [ids, vocabulary]. {"gguf", "quantize": KIND, "out"}:
llama.cpp's own quantiser writes the file of that type (embedding and output too). Keys and values of the cache are
float32, and so is attention; matrices of files other than F32 are multiplied as llama.cpp does, with rounded inputs.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

import llama_cpp as api
import numpy as np

FILE_TYPES = {
    "Q4_0": api.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0,
    "BF16": api.LLAMA_FTYPE_MOSTLY_BF16,
}
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


class Model:
    """One opened file and the sequence decoded so far."""

    def __init__(self, path: str, length: int) -> None:
        options = api.llama_model_default_params()
        options.use_extra_bufts = False  # the plain layout of weights
        self.model = api.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        context = api.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = max(256, length), max(256, length), max(256, length)
        context.n_threads = context.n_threads_batch = THREADS
        context.type_k = context.type_v = api.GGML_TYPE_F32
        context.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = api.llama_init_from_model(self.model, context)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(max(256, length), 0, 1)
        self.at = 0

    def feed(self, ids: list[int]) -> np.ndarray:
        """Logits of these tokens, which follow those before."""
        self.batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            self.batch.token[index], self.batch.pos[index] = token, self.at + index
            self.batch.n_seq_id[index], self.batch.seq_id[index][0], self.batch.logits[index] = 1, 0, 1
        if api.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")
        self.at += len(ids)
        rows = [api.llama_get_logits_ith(self.context, index) for index in range(len(ids))]
        return np.stack([np.ctypeslib.as_array(row, (self.vocabulary,)).copy() for row in rows])

    def close(self) -> None:
        api.llama_batch_free(self.batch)
        api.llama_free(self.context)
        api.llama_model_free(self.model)


def ask(question: dict[str, Any]) -> dict[str, Any]:
    if "quantize" in question:
        options = api.llama_model_quantize_default_params()
        options.ftype, options.pure, options.nthread = FILE_TYPES[question["quantize"]], True, THREADS
        done = api.llama_model_quantize(question["gguf"].encode(), question["out"].encode(), ctypes.byref(options))
        return {"code": done}
    ids, wanted = list(question["ids"]), question["tokens"]
    model = Model(question["gguf"], len(ids) + wanted)
    logits = model.feed(ids)
    out: list[int] = []
    if question["logits"]:
        logits.tofile(question["logits"])
    while len(out) < wanted:
        out.append(int(logits[-1].argmax()))
        logits = model.feed(out[-1:])
    model.close()
    return {"ids": out}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the package prints goes to standard error
    for line in sys.stdin:
        answers.write(json.dumps(ask(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
