"""What a terminal would show, as text."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console


def printed(view: Any, width: int = 100, **options: Any) -> str:
    """``view`` as rich prints it on ``width`` columns, without colours."""
    out = io.StringIO()
    Console(file=out, width=width, **options).print(view)
    return out.getvalue()
