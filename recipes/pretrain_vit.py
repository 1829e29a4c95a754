"""A vision tower from pictures alone: by default two views of each, told from those of all others (SimCLR).

    sslnlp train pretrain_vit data.train=pictures.parquet data.valid=others.parquet
    sslnlp train pretrain_vit data.train=pictures/ objective.name=rotation collator.name=rotation

Other objectives between views: `moco`, `byol`, `barlow_twins`, `vicreg`. Other targets: `rotation` and
`masked_patches`, each with the collator of its name. The export is a stock `ViTModel`; `clip_image_text` starts from it
with `objective.vision=out/vit/export`.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(valid_fraction=0.05),
        model=ModelConfig(architecture="vit", size="tiny"),
        collator=Options("image_views"),
        # The state of the whole picture is what stock dual encoders and classifiers read.
        objective=Options("info_nce", pooling="cls", temperature=0.2),
        train=TrainConfig(epochs=20, batch_size=128, lr=5e-4, schedule="cosine", warmup=0.1, weight_decay=0.1),
        out="out/vit",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
