"""Reading metrics.jsonl in tests, strictly."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """All records in the order of writing; a torn last line is left out. A damaged line is an error."""
    *lines, _torn = Path(path).read_text().split("\n")
    return [{key: NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in json.loads(line).items()}
            for line in lines]
