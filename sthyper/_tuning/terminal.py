"""Where an experiment may talk to the person who started it."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from sthyper.constants import ENV_QUIET

__all__ = ["progress_stream"]


def progress_stream() -> TextIO | None:
    """Return stdout if it is a terminal or a notebook's output and nobody asked for quiet, else ``None``."""
    stream = sys.stdout
    if stream is None or os.environ.get(ENV_QUIET) == "1":
        return None
    return stream if stream.isatty() or type(stream).__module__ == "ipykernel.iostream" else None
