"""Sentence vectors from raw text: an encoder whose one vector must let a small decoder write the text again.

    sslnlp train embed_tsdae data.train=corpus.txt model.pretrained=out/bert/export

One sentence or short passage a document. Without model.pretrained it starts from nothing, which takes far longer. The
export is a sentence-transformers model of the encoder alone; `sslnlp search` indexes with it.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=128),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="modernbert", size="mini"),
        # Of the kinds and rates of noise that Wang et al. (2021) tried, deleting 60 % did best.
        collator=Options("tsdae", rate=0.6),
        # The mean, as few models of one's own have learnt to say anything at [CLS].
        objective=Options("tsdae", pooling="mean", layers=1),
        train=TrainConfig(steps=2000, batch_size=64, lr=5e-4),
        out="out/tsdae",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
