"""What a run leaves behind: a plain Hugging Face folder, loaded again and compared before it is called done."""

from sslnlp.export.folder import export_model
from sslnlp.export.modules import LABEL_NAMES
from sslnlp.export.reloaded import ExportError
from sslnlp.modes import self_check

__all__ = ["LABEL_NAMES", "ExportError", "export_model", "self_check"]
