"""A small GPT: pre-norm decoder-only transformer over a byte vocabulary.

The idea: nothing but what GPT-2 has, with two twists for a swarm: every initial value is uniform (normal
numbers differ between machines in their last bit), and dropout takes its masks from a generator handed in, so
that a work unit can be recomputed by anybody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from crowdsurf.peer.compute.seeds import centered_uniform

# Shape suffixes: B batch, T time (tokens), C width, H heads, V vocabulary.


@dataclass(frozen=True, slots=True)
class GptShape:
    """Size of the model. `tied` shares the token embedding with the output layer."""

    vocabulary: int
    layers: int
    heads: int
    width: int
    context: int
    dropout: float
    tied: bool


def dropout(x: torch.Tensor, rate: float, generator: torch.Generator | None) -> torch.Tensor:
    """Dropout whose mask is drawn on the CPU from `generator`; the identity without a generator or at rate 0."""
    if rate == 0.0 or generator is None:
        return x
    kept = torch.rand(x.shape, generator=generator).ge(rate).to(x.device)
    return x * kept / (1.0 - rate)


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each added to the stream. (Attention weights are not dropped.)"""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention_in = nn.Linear(shape.width, 3 * shape.width)
        self.attention_out = nn.Linear(shape.width, shape.width)
        self.mlp_norm = nn.LayerNorm(shape.width)
        self.mlp_in = nn.Linear(shape.width, 4 * shape.width)
        self.mlp_out = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x_BTC: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """float (B, T, C) to the same shape."""
        batch, time, width = x_BTC.shape
        mixed = self.attention_in(self.attention_norm(x_BTC))
        split = mixed.view(batch, time, 3, self.shape.heads, width // self.shape.heads)
        query_BHTc, key_BHTc, value_BHTc = split.permute(2, 0, 3, 1, 4)
        attended_BHTc = functional.scaled_dot_product_attention(query_BHTc, key_BHTc, value_BHTc, is_causal=True)
        attended_BTC = attended_BHTc.transpose(1, 2).reshape(batch, time, width)
        x_BTC = x_BTC + dropout(self.attention_out(attended_BTC), self.shape.dropout, generator)
        hidden = functional.gelu(self.mlp_in(self.mlp_norm(x_BTC)), approximate="tanh")
        return x_BTC + dropout(self.mlp_out(hidden), self.shape.dropout, generator)


class Gpt(nn.Module):
    """Token and position embeddings, blocks, a final norm and an output layer."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.position_embedding = nn.Parameter(torch.zeros(shape.context, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.final_norm = nn.LayerNorm(shape.width)
        self.output = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.output.weight = self.token_embedding.weight

    def forward(self, tokens_BT: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """int64 (B, T), T <= context, to logits (B, T, V). `generator` gives the dropout masks; None: no dropout."""
        x_BTC = self.token_embedding(tokens_BT) + self.position_embedding[: tokens_BT.shape[1]]
        x_BTC = dropout(x_BTC, self.shape.dropout, generator)
        for block in self.blocks:
            x_BTC = block(x_BTC, generator)
        logits_BTV: torch.Tensor = self.output(self.final_norm(x_BTC))
        return logits_BTV

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """GPT-2's variances (0.02 squared; residual outputs divided by 2 x layers), uniform instead of normal."""
        bound = 0.02 * math.sqrt(3.0)
        residual_bound = bound / math.sqrt(2.0 * self.shape.layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                is_residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
                limit = residual_bound if is_residual else bound
                parameter.copy_(centered_uniform(tuple(parameter.shape), limit, generator))
