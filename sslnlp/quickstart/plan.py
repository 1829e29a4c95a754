"""The quickstart's runs as recipes: small settings of what the shipped recipes do, and how the budget is divided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sslnlp.data.config import DataConfig
from sslnlp.metrics import tokens_per_second
from sslnlp.model_config import ModelConfig
from sslnlp.quickstart.corpus import Corpus
from sslnlp.recipe import Options, Recipe, TokenizerConfig, TrainConfig

SHARES: Mapping[str, float] = {"encoder": 0.4, "decoder": 0.15, "classifier": 0.2, "ranker": 0.25}
"""Parts of the budget. Fine-tuning is done several times, from pretrained and fresh weights, inside its share."""
VOCABULARY = 4096
ENCODER = ModelConfig(architecture="modernbert", size="tiny", embedding_init="cooccurrence")
DECODER = ModelConfig(architecture="llama", size="tiny", embedding_init="cooccurrence")
TEXT_LENGTH, QUERY_LENGTH = 128, 48
CLASSIFIER_ROWS, RANKER_ROWS = 16, 64
"""Rows of a batch. A ranker's negatives are the other rows of its batch, so there are more."""


@dataclass(frozen=True)
class Plan:
    """Makes the recipes of one quickstart: corpus, folder, seconds, and the precision that is faster here."""

    corpus: Corpus
    out: Path
    seconds: float
    precision: str

    def budget(self, part: str) -> str:
        """The wall clock of a part, as a recipe takes it."""
        return f"{max(1.0, SHARES[part] * self.seconds):.1f}s"

    def steps(self, part: str, runs: int, tokens: int, *, most: int) -> int:
        """How many updates of `tokens` tokens each of `runs` fine-tuning runs makes, at the speed of pretraining.

        One number for all of them, fixed before the first: what is compared has been trained alike.
        """
        seconds = SHARES[part] * self.seconds / runs
        return max(5, min(most, int(seconds * tokens_per_second(self.out / "encoder" / "metrics.jsonl") / tokens)))

    @property
    def encoder_export(self) -> str:
        return str(self.out / "encoder" / "export")

    def encoder(self) -> Recipe:
        """A BERT-style encoder. 30 % of the tokens are targets: more signal a row than 15 %, which suits short runs."""
        return Recipe(
            name="encoder",
            out=str(self.out / "encoder"),
            objective=Options("masked_lm"),
            collator=Options(rate=0.3, replace="bert"),
            data=self._text(),
            tokenizer=TokenizerConfig(vocab_size=VOCABULARY),
            model=ENCODER,
            train=self._pretrain("encoder"),
        )

    def decoder(self) -> Recipe:
        """A GPT-style decoder on the same text and tokenizer."""
        return Recipe(
            name="decoder",
            out=str(self.out / "decoder"),
            objective=Options("causal_lm"),
            data=self._text(),
            tokenizer=TokenizerConfig(path=str(self.out / "encoder" / "tokenizer")),
            model=DECODER,
            # As in pretrain_gpt: 2.26 instead of 2.29 bits per byte after 0.4 M tokens (docs/log.md).
            train=replace(self._pretrain("decoder"), embedding_lr_scale=4.0, eps=1e-6),
        )

    def classifier(self, train: Path, name: str, *, pretrained: bool, seed: int, steps: int) -> Recipe:
        """Which library a text documents. The test file is scored once, at the end: it chooses nothing."""
        return Recipe(
            name=name,
            out=str(self.out / name),
            objective=Options("classification"),
            collator=Options(max_length=TEXT_LENGTH),
            data=DataConfig(train=str(train), valid=str(self.corpus.labelled["test"]), cache=self._cache),
            # Nothing in masked language modelling teaches the first token to stand for the text, so all tokens do.
            model=self._start(pretrained, classifier_pooling="mean"),
            tokenizer=TokenizerConfig(path=self.encoder_export),
            train=self._finetune(steps, batch_size=CLASSIFIER_ROWS, seed=seed),
        )

    def ranker(self, name: str, *, pretrained: bool, steps: int) -> Recipe:
        """Summary lines find their own documentation."""
        return Recipe(
            name=name,
            out=str(self.out / name),
            objective=Options("ranking"),
            collator=Options(query_length=QUERY_LENGTH, document_length=TEXT_LENGTH),
            data=DataConfig(train=str(self.corpus.pairs), beir=str(self.corpus.beir), cache=self._cache),
            model=self._start(pretrained),
            tokenizer=TokenizerConfig(path=self.encoder_export),
            train=self._finetune(steps, batch_size=RANKER_ROWS, seed=0),
        )

    def _text(self) -> DataConfig:
        return DataConfig(
            train=str(self.corpus.train_text),
            valid=str(self.corpus.valid_text),
            text="text",
            seq_length=TEXT_LENGTH,
            valid_tokens=None,
            cache=self._cache,
            licence="that of the installed packages",
        )

    @property
    def _cache(self) -> str:
        return str(self.out / "cache")

    def _start(self, pretrained: bool, **config: str) -> ModelConfig:
        """The exported encoder, or one of its shape with fresh weights."""
        path = self.encoder_export if pretrained else None
        return replace(ENCODER, pretrained=path, config={**ENCODER.config, **config})

    def _pretrain(self, part: str) -> TrainConfig:
        # After a million tokens a masked LM of this size is at 5.5 nats with it, at 6.4 with AdamW (docs/log.md).
        return TrainConfig(
            budget=self.budget(part), batch_size=16, optimizer="muon", lr=1e-2, betas=(0.5, 0.98), eval_every=400,
            save_every=500, keep=1, precision=self.precision,
        )  # fmt: skip

    def _finetune(self, steps: int, *, batch_size: int, seed: int) -> TrainConfig:
        # One evaluation, after the last step, and its weights are kept whatever it says.
        return TrainConfig(
            steps=steps,
            batch_size=batch_size,
            lr=2e-3,
            seed=seed,
            schedule="linear",
            warmup=0.1,
            keep_best=False,
            eval_every=steps,
            save_every=steps,
            keep=1,
            precision=self.precision,
        )
