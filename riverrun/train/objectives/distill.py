"""Distillation: the student learns the teacher's distribution over the vocabulary on the rows with a label.

Logits of both models exist for `CHUNK` rows at a time only; the gradient is formed with the loss, as in `train.loss`.
N = rows with a label, V = vocabulary, E and F = hidden sizes of student and teacher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riverrun.base.errors import ConfigError
from riverrun.data.packing import Pack
from riverrun.models.transformer import CausalLM
from riverrun.train.loss import Head, head_back, head_logits
from riverrun.train.objectives import Loss, formulas
from riverrun.train.objectives.config import DistillConfig
from riverrun.train.objectives.supervised import hidden_states, label_rows

__all__ = ["CHUNK", "Distill", "linear_divergence"]

CHUNK = 128


class _LinearDivergence(torch.autograd.Function):
    """Sums [2]: the divergence, the plain next-token loss; gradients are those of their weighted sum."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor | Head,
        teacher_hidden: Tensor,
        teacher_head: Tensor | Head,
        targets: Tensor,
        config: DistillConfig,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        soft, hard = (torch.zeros((), dtype=torch.float64) for _ in range(2))
        grads = torch.empty_like(hidden)
        learns = isinstance(head, Tensor) and ctx.needs_input_grad[1]
        d_head = torch.zeros_like(head, dtype=wide) if learns else None  # type: ignore[arg-type]
        for start in range(0, hidden.shape[0], CHUNK):
            chosen = slice(start, start + CHUNK)
            rows = hidden[chosen]
            guide = head_logits(teacher_hidden[chosen], teacher_head).to(wide) / config.temperature
            teacher = torch.log_softmax(guide, dim=1)
            formed = head_logits(rows, head).detach()
            with torch.enable_grad():
                logits = formed.to(wide).requires_grad_()
                student = torch.log_softmax(logits / config.temperature, dim=1)
                diverged = formulas.divergence(student, teacher, config.mixture).sum(dtype=torch.float64)
                total, plain = diverged * (1 - config.hard_weight), torch.zeros((), dtype=torch.float64)
                if config.hard_weight:
                    plain = -torch.log_softmax(logits, dim=1).gather(1, targets[chosen, None]).sum(dtype=torch.float64)
                    total = total + plain * config.hard_weight
                (d_logits,) = torch.autograd.grad(total, logits)
            soft += diverged.detach()
            hard += plain.detach()
            grads[chosen] = head_back(d_logits.to(hidden.dtype), head)
            if d_head is not None:
                d_head += d_logits.T @ rows.to(wide)
        ctx.save_for_backward(grads, d_head)
        combined = soft * (1 - config.hard_weight) + hard * config.hard_weight
        ctx.mark_non_differentiable(soft, hard)
        return combined.to(wide), soft, hard

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads, d_head = ctx.saved_tensors
        if d_head is not None:
            d_head = (d_head * upstream[0]).to(grads.dtype)
        return grads * upstream[0].to(grads.dtype), d_head, None, None, None, None


def linear_divergence(
    hidden: Tensor,
    head: Tensor | Head,
    teacher_hidden: Tensor,
    teacher_head: Tensor | Head,
    targets: Tensor,
    config: DistillConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [N, E], head [V, E], teacher's [N, F] and [V, F], targets [N] -> (what is minimised, divergence, plain
    next-token loss): sums over the rows in nats, the first differentiable. Without `hard_weight` the last is 0."""
    out: tuple[Tensor, Tensor, Tensor] = _LinearDivergence.apply(  # type: ignore[no-untyped-call]
        hidden, head, teacher_hidden, teacher_head, targets, config
    )
    return out


class Distill:
    """Divergence from a frozen teacher with the same vocabulary; the counted unit is the label token."""

    def __init__(self, model: CausalLM, config: DistillConfig | None = None, *, teacher: CausalLM) -> None:
        """ConfigError when the teacher's vocabulary is not the student's."""
        self.model, self.config, self.teacher = model, config or DistillConfig(), teacher
        self.name = self.config.name
        sizes = [each.config.vocab_size for each in (model, teacher)]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"the teacher's vocabulary has {sizes[1]} tokens, the student's {sizes[0]}: "
                "choose a teacher with the student's tokenizer"
            )

    def count(self, batch: Pack) -> int:
        return batch.label_tokens

    def __call__(self, batch: Pack) -> Loss:
        with torch.no_grad():
            guide, _ = label_rows(hidden_states(self.teacher, batch), batch)
        rows, targets = label_rows(hidden_states(self.model, batch), batch)
        total, soft, hard = linear_divergence(rows, self.model.head, guide, self.teacher.head, targets, self.config)
        metrics = {"divergence": float(soft)}
        return Loss(total, metrics | ({"next_token": float(hard)} if self.config.hard_weight else {}))
