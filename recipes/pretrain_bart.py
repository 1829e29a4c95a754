"""Pretrain an encoder-decoder on raw text: read a damaged document, write it whole.

    sslnlp train pretrain_bart data.train=corpus.txt

The export loads as AutoModelForSeq2SeqLM and answers `generate`: given a text with [MASK] in it, the text filled in.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=128),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="bart", size="mini", embedding_init="cooccurrence"),
        # The mixture of the paper's large model: spans filled in, sentences in another order.
        collator=Options("denoising", rate=0.3, infill=1.0, mean_span=3.0, permute=1.0),
        objective=Options("denoising"),
        train=TrainConfig(steps=2000, batch_size=64, optimizer="muon", lr=4e-3, betas=(0.5, 0.98)),
        out="out/bart",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
