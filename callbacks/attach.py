"""Attaches :class:`TuneReportCallback` to every Trainer of a trial whose script does not know sthyper.

Lightning calls :func:`callbacks` by the entry point ``lightning.pytorch.callbacks_factory``. Imports nothing heavy:
the entry point is asked for every Trainer of an environment in which sthyper is installed.
"""

from __future__ import annotations

import json
import os
from typing import Any

from sthyper.constants import ENV_LIGHTNING

__all__ = ["callbacks"]


def callbacks() -> list[Any]:
    """Return the callback that ``STHYPER_LIGHTNING`` describes, nothing outside such a trial.

    Raises:
        TypeError: If the arguments in ``STHYPER_LIGHTNING`` are not those of ``TuneReportCallback``.
    """
    arguments = os.environ.get(ENV_LIGHTNING)
    if not arguments:
        return []
    from sthyper.callbacks.lightning.report import TuneReportCallback

    return [TuneReportCallback(**json.loads(arguments))]
