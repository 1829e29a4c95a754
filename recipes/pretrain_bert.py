"""Pretrain an encoder on raw text: hide tokens, predict them from both sides.

    sslnlp train pretrain_bert data.train=corpus.txt

The export answers `pipeline("fill-mask")`, and every later stage starts from it: model.pretrained=out/bert/export.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=128),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="modernbert", size="mini", embedding_init="cooccurrence"),
        # A third of the tokens is hidden, more than BERT's 15 %. A tenth of these stays and a tenth is drawn, so
        # that the top layer carries every token: fine-tuning starts from there (docs/log.md has what that is worth).
        collator=Options("masked_lm", rate=0.3, replace="bert"),
        objective=Options("masked_lm"),
        train=TrainConfig(steps=2000, batch_size=64, optimizer="muon", lr=4e-3, betas=(0.5, 0.98)),
        out="out/bert",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
