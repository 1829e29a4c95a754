"""Where a quickstart goes, looked at before anything is imported that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError

BEGUN = "quickstart.json"


def begun_in(out: Path) -> dict[str, Any]:
    """What a quickstart that was stopped in `out` was begun with; empty where there is none. Raises `UserError` for a
    folder that holds something else."""
    if (out / BEGUN).is_file() and not (out / "report.html").exists():
        begun: dict[str, Any] = json.loads((out / BEGUN).read_text(encoding="utf-8"))
        return begun
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} is not empty; give another --out, or remove it")
    return {}
