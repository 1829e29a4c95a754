"""Pretrain an encoder for retrieval on raw text: its [CLS] must let a one-layer decoder rebuild the passage.

    sslnlp train embed_retromae data.train=corpus.txt

The export fills masks as any masked LM and is a sentence-transformers model. It is made to be fine-tuned:
sslnlp train finetune_ranking model.pretrained=out/retromae/export data.train=pairs.jsonl
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=128),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="modernbert", size="mini"),
        # A light mask for the encoder, so that the vector can be good; a heavy one for the decoder, so that it has to.
        collator=Options("retromae", rate=0.3),
        objective=Options("retromae", decoder_rate=0.5),
        train=TrainConfig(steps=2000, batch_size=64, lr=1e-3),
        out="out/retromae",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
