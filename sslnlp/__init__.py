"""sslnlp: self-supervised pretraining of language models, from raw text to a published checkpoint."""

__version__ = "0.1.0"
