"""The quickstart's runs as recipes: small settings of what the shipped recipes do, and how the budget is divided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sslnlp.budget import parse_duration
from sslnlp.data.config import DataConfig
from sslnlp.models import ModelConfig
from sslnlp.quickstart.corpus import Corpus
from sslnlp.recipe import Options, Recipe, TokenizerConfig, TrainConfig

SHARES: Mapping[str, float] = {"encoder": 0.45, "decoder": 0.2, "classifier": 0.15, "ranker": 0.2}
"""Parts of the budget. Fine-tuning is done twice, from the pretrained and from fresh weights, inside its share."""
VOCABULARY = 8192
ENCODER = ModelConfig(architecture="modernbert", size="tiny")
DECODER = ModelConfig(architecture="llama", size="tiny")


@dataclass(frozen=True)
class Plan:
    """Makes the recipes of one quickstart: its corpus, its folder, its seconds."""

    corpus: Corpus
    out: Path
    seconds: float

    @classmethod
    def of(cls, corpus: Corpus, out: Path, budget: str) -> Plan:
        return cls(corpus, out, parse_duration(budget))

    def budget(self, part: str, runs: int = 1) -> str:
        """The budget of one of the `runs` that share a part."""
        return f"{max(1.0, SHARES[part] * self.seconds / runs):.1f}s"

    @property
    def encoder_export(self) -> str:
        return str(self.out / "encoder" / "export")

    def encoder(self) -> Recipe:
        """A BERT-style encoder. 30 % of the tokens are targets: more signal a row than 15 %, which suits short runs."""
        return Recipe(
            name="encoder",
            out=str(self.out / "encoder"),
            objective=Options("masked_lm"),
            collator=Options(rate=0.3),
            data=self._text(),
            tokenizer=TokenizerConfig(vocab_size=VOCABULARY),
            model=ENCODER,
            train=TrainConfig(budget=self.budget("encoder"), batch_size=32, lr=2e-3, eval_every=None),
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
            train=TrainConfig(budget=self.budget("decoder"), batch_size=32, lr=2e-3),
        )

    def classifier(
        self, train: Path, name: str, *, pretrained: bool, seed: int, steps: int | None, runs: int
    ) -> Recipe:
        """Which library a text documents. The test file is scored once, at the end: it chooses nothing."""
        return Recipe(
            name=name,
            out=str(self.out / name),
            objective=Options("classification"),
            collator=Options(max_length=128),
            data=DataConfig(train=str(train), valid=str(self.corpus.labelled["test"]), cache=self._cache),
            **self._start(pretrained),
            train=self._finetune(steps, self.budget("classifier", runs), batch_size=16, lr=5e-4, seed=seed),
        )

    def ranker(self, name: str, *, pretrained: bool, steps: int | None) -> Recipe:
        """Summary lines find their own documentation."""
        return Recipe(
            name=name,
            out=str(self.out / name),
            objective=Options("ranking"),
            collator=Options(query_length=48, document_length=128),
            data=DataConfig(train=str(self.corpus.pairs), beir=str(self.corpus.beir), cache=self._cache),
            **self._start(pretrained),
            train=self._finetune(steps, self.budget("ranker", 2), batch_size=64, lr=5e-4, seed=0),
        )

    def _text(self) -> DataConfig:
        return DataConfig(
            train=str(self.corpus.train_text),
            valid=str(self.corpus.valid_text),
            text="text",
            seq_length=128,
            valid_tokens=None,
            cache=self._cache,
            licence="that of the installed packages",
        )

    @property
    def _cache(self) -> str:
        return str(self.out / "cache")

    def _start(self, pretrained: bool) -> dict[str, ModelConfig | TokenizerConfig]:
        if pretrained:
            return {"model": ModelConfig(pretrained=self.encoder_export, dropout=0.1)}
        model = ModelConfig(architecture=ENCODER.architecture, size=ENCODER.size, dropout=0.1)
        return {"model": model, "tokenizer": TokenizerConfig(path=self.encoder_export)}

    @staticmethod
    def _finetune(steps: int | None, budget: str, *, batch_size: int, lr: float, seed: int) -> TrainConfig:
        # One evaluation, after the last step, and its weights are kept whatever it says.
        return TrainConfig(
            steps=steps,
            budget=None if steps else budget,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            schedule="linear",
            warmup=0.1,
            keep_best=False,
            eval_every=1_000_000,
            save_every=1_000_000,
            keep=1,
        )
