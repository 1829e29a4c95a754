"""Pretrain an encoder on raw text: tell for each token whether a small generator put it there.

    sslnlp train pretrain_electra data.train=corpus.txt

The export is the discriminator, for fine-tuning and embedding: model.pretrained=out/electra/export. It fills no gaps.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=128),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="electra", size="mini", embedding_init="cooccurrence"),
        collator=Options("electra", rate=0.3),
        # Published: a rate of 0.15 and a quarter of the width. A generator this small then learns only frequencies in
        # its first six million tokens (docs/log.md); large models do better with those.
        # objective.corrective=true adds the loss that also says what the token was.
        objective=Options("electra", generator_size=0.5),
        train=TrainConfig(steps=2000, batch_size=64, optimizer="muon", lr=4e-3, betas=(0.5, 0.98)),
        out="out/electra",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
