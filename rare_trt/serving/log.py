"""One JSON object per line on stderr. Never the path of a scan or an output, a sentence about a
scan, or what was sent."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from typing import Any


def log(event: str, **facts: Any) -> None:
    """Says that `event` happened, with `facts` that cannot name a patient."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    sys.stderr.write(json.dumps({"time": now, "event": event, **facts}) + "\n")
    sys.stderr.flush()
