"""Pretrain an encoder-decoder on raw text: write the spans that sentinels stand for.

    sslnlp train pretrain_t5 data.train=corpus.txt

The export is a stock T5: it answers `generate`, and is fine-tuned to write. A mixture of denoisers: objective.name=ul2.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=256),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="t5", size="mini", embedding_init="cooccurrence"),
        collator=Options("span_corruption", rate=0.15, mean_span=3.0),
        objective=Options("span_corruption"),
        train=TrainConfig(steps=2000, batch_size=32, optimizer="muon", lr=1e-2, betas=(0.5, 0.98)),
        out="out/t5",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
