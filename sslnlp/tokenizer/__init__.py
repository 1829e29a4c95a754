"""Tokenizers: train, load, frame, find word and sentence boundaries, and check the contract with an objective."""

from sslnlp.tokenizer.contract import Contract, contract, vocabulary_facts
from sslnlp.tokenizer.framing import Framing, Style, framing, set_framing
from sslnlp.tokenizer.sentences import SentenceBoundaries, sentence_boundaries
from sslnlp.tokenizer.specials import (
    SENTINELS,
    SPECIALS,
    drawable_ids,
    load_tokenizer,
    pad_by_end,
    special_id,
    special_mask,
)
from sslnlp.tokenizer.training import train_tokenizer
from sslnlp.tokenizer.words import WordBoundaries, word_boundaries

__all__ = [
    "SENTINELS",
    "SPECIALS",
    "Contract",
    "Framing",
    "SentenceBoundaries",
    "Style",
    "WordBoundaries",
    "contract",
    "drawable_ids",
    "framing",
    "load_tokenizer",
    "pad_by_end",
    "sentence_boundaries",
    "set_framing",
    "special_id",
    "special_mask",
    "train_tokenizer",
    "vocabulary_facts",
    "word_boundaries",
]
