"""Settings of a fine-tune. Imports no torch, so that specs and plans can be read anywhere."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from riverrun.base.config import Config

__all__ = ["FinetuneConfig"]


class FinetuneConfig(Config):
    """Settings of a LoRA fine-tune. Batches are counted in tokens; accumulation is derived."""

    rank: int = Field(default=16, ge=1, le=1024, description="rank of the update")
    alpha: float = Field(default=32.0, gt=0, description="scale of the update is alpha / rank")
    rslora: bool = Field(default=False, description="scale of the update is alpha / sqrt(rank) instead")
    init: Literal["kaiming", "gaussian"] = Field(
        default="kaiming",
        description="how the first factor is drawn; the second is zero, so training starts at the base",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="how the learning rate falls after the warm-up"
    )
    warmup: float = Field(default=0.03, ge=0, le=0.5, description="share of the steps in which the rate rises")
    epochs: int = Field(default=2, ge=1, description="times that every row is seen")
    micro_tokens: int = Field(default=2048, ge=64, description="tokens computed at once; the memory knob")
    global_tokens: int = Field(default=2048, ge=64, description="tokens of one optimizer step, in whole packs")
    max_tokens: int = Field(default=1024, ge=16, description="longer rows are dropped and counted")
    clip_norm: float = Field(default=1.0, gt=0, description="longest gradient; longer ones are scaled down to it")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled decay")
    save_every: int = Field(default=20, ge=1, description="optimizer steps between checkpoints")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="numbers that are multiplied in; auto: bfloat16 where the processor multiplies it"
    )
    share_prefix: bool = Field(default=True, description="compute a beginning that many rows share once per pack")
    codec: str = Field(default="hermes", description="tool-call format of the rows")
    seed: int = Field(
        default=0, description="of the order of rows and the first factors; 0 in a spec takes the seed of the whole"
    )
