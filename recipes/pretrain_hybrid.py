"""Pretrain one decoder that also reads in both directions: half of the rows masked, half of them causal (GPT-BERT).

    sslnlp train pretrain_hybrid data.train=corpus.txt

The export answers `pipeline("text-generation")` as it is; with `is_causal=False` in its configuration it fills masks.
The held-out figures stand beside those of `pretrain_bert` (`masked_loss`) and `pretrain_gpt` (`causal_loss`).
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=256),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="llama", size="mini", embedding_init="cooccurrence"),
        collator=Options("hybrid", masked_share=0.5),
        objective=Options("hybrid"),
        train=TrainConfig(steps=2000, batch_size=32, optimizer="muon", lr=4e-3, betas=(0.5, 0.98), eps=1e-6),
        out="out/hybrid",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
