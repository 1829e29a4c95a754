"""Fine-tune a pretrained encoder to tag words: names of people and places, parts of speech.

    sslnlp train finetune_tagging model.pretrained=out/bert/export data.train=tagged.jsonl

Rows hold a list of words (`tokens`, `words`) and a list of as many tags (`tags`, `ner_tags`): `B-PER I-PER O`, or any
other names. The export answers `pipeline("token-classification", aggregation_strategy="first")`.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(valid_fraction=0.1),
        model=ModelConfig(size="mini", dropout=0.1),
        collator=Options("tagging"),
        objective=Options("tagging"),
        train=TrainConfig(epochs=5, batch_size=16, relative_lr=6.0, schedule="linear", warmup=0.1),
        out="out/tagger",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
