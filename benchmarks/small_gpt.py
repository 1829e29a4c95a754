"""The model of the short loop in `benchmarks.contenders`: GPT-2 as nanoGPT writes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


class _Block(nn.Module):
    def __init__(self, width: int, plain: bool) -> None:
        super().__init__()
        self.heads, self.plain = width // 64, plain
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, h = x.shape
        q, k, v = (t.view(b, s, self.heads, -1).transpose(1, 2) for t in self.qkv(self.ln_1(x)).split(h, dim=2))
        if self.plain:
            ahead = torch.ones(s, s, dtype=torch.bool, device=x.device).triu(1)
            score = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            y = score.masked_fill(ahead, float("-inf")).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, h))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class SmallGPT(nn.Module):
    """GPT-2 the short way: one file, fused attention, tied head; given the weights of the stock model.

    `plain`: attention by matrix products, which nanoGPT has for where no fused kernel is; in bf16 on a CPU the faster.
    """

    def __init__(self, stock: PreTrainedModel, *, plain: bool = False) -> None:
        super().__init__()
        config = stock.config
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.places = nn.Embedding(config.n_positions, config.n_embd)
        self.blocks = nn.ModuleList(_Block(config.n_embd, plain) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        theirs = {name.removeprefix("transformer."): value for name, value in stock.state_dict().items()}
        names = {"attn.c_attn": "qkv", "attn.c_proj": "out", "mlp.c_fc": "up", "mlp.c_proj": "down"}
        mine = {"tokens.weight": theirs["wte.weight"], "places.weight": theirs["wpe.weight"]}
        mine |= {"norm.weight": theirs["ln_f.weight"], "norm.bias": theirs["ln_f.bias"]}
        mine["head.weight"] = mine["tokens.weight"]
        for i in range(config.n_layer):
            for part in ("weight", "bias"):
                mine |= {f"blocks.{i}.{ln}.{part}": theirs[f"h.{i}.{ln}.{part}"] for ln in ("ln_1", "ln_2")}
                mine |= {f"blocks.{i}.{new}.{part}": theirs[f"h.{i}.{old}.{part}"].t() for old, new in names.items()}
        self.load_state_dict(mine)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), target.flatten(), ignore_index=-1)
