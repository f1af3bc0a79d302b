"""Every quantisation grid and packing, once: blocks of ggml, the group grid of AWQ and GPTQ, NF4. numpy only."""

from __future__ import annotations

from riverrun.models.quantized.blocks import (
    BLOCK_TYPES,
    BlockType,
    block_type,
    block_type_of,
    dequantize_blocks,
    quantize_blocks,
)
from riverrun.models.quantized.groups import (
    AwqWords,
    GptqWords,
    GroupQuantized,
    awq_words,
    dequantize_groups,
    dequantize_rows,
    from_awq,
    from_gptq,
    gptq_words,
    pack_codes,
    quantize_groups,
    quantize_rows,
    unpack_codes,
)
from riverrun.models.quantized.nf4 import NF4_LEVELS, Nf4, dequantize_nf4, dynamic_levels, quantize_nf4

__all__ = [
    "BLOCK_TYPES",
    "NF4_LEVELS",
    "AwqWords",
    "BlockType",
    "GptqWords",
    "GroupQuantized",
    "Nf4",
    "awq_words",
    "block_type",
    "block_type_of",
    "dequantize_blocks",
    "dequantize_groups",
    "dequantize_nf4",
    "dequantize_rows",
    "dynamic_levels",
    "from_awq",
    "from_gptq",
    "gptq_words",
    "pack_codes",
    "quantize_blocks",
    "quantize_groups",
    "quantize_nf4",
    "quantize_rows",
    "unpack_codes",
]
