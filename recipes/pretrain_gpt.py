"""Pretrain a decoder on raw text: predict each token from those before it.

    sslnlp train pretrain_gpt data.train=corpus.txt

The export answers `pipeline("text-generation")`. The held-out figure to compare across tokenizers is bits per byte.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=256),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="llama", size="mini", embedding_init="cooccurrence"),
        collator=Options("causal_lm"),
        objective=Options("causal_lm"),
        train=TrainConfig(
            steps=2000, batch_size=32, optimizer="muon", lr=4e-3, betas=(0.5, 0.98), embedding_lr_scale=4.0, eps=1e-6
        ),
        out="out/gpt",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
