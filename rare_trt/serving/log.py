"""The server's log: one JSON object per line on stderr, without any request data."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from typing import Any


def log(event: str, **facts: Any) -> None:
    """Logs `event` with `facts`, which must not contain what could name a patient."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    sys.stderr.write(json.dumps({"time": now, "event": event, **facts}) + "\n")
    sys.stderr.flush()
