"""How good a classifier gets with how many labels: every method over several draws of the labels and several seeds."""

from sslnlp.curve.run import label_curve

__all__ = ["label_curve"]
