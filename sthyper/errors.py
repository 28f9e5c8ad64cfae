"""Exceptions of the library beside ``ValueError`` and ``TypeError``."""

from __future__ import annotations

__all__ = ["ConfigSpaceError", "ExperimentError", "MissingExtra", "ReportError", "TrialFailed", "closest"]


class ConfigSpaceError(ValueError):
    """A configuration space that cannot be used: empty, contradictory, unknown names."""


class ReportError(ValueError):
    """A report that the scheduler cannot use (metric or resource missing or wrong); it fails its trial."""


class TrialFailed(ValueError):
    """More trials failed than ``max_failures`` allows; the message ends with the tail of stderr."""


class ExperimentError(RuntimeError):
    """The experiment cannot go on, for a reason that is no single trial's."""


class MissingExtra(ImportError):
    """An optional dependency is missing.

    Args:
        package: What could not be imported.
        extra: The extra of sthyper that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; it comes with: pip install 'sthyper[{extra}]'")
        self.extra = extra


def closest(name: object, valid: object) -> str:
    """Return `` (did you mean 'x'?)`` for the valid name nearest to ``name`` whatever its case, or an empty string."""
    import difflib

    names = {str(v).casefold(): str(v) for v in valid}  # type: ignore[attr-defined]
    matches = difflib.get_close_matches(str(name).casefold(), names, n=1, cutoff=0.5)
    return f" (did you mean {names[matches[0]]!r}?)" if matches else ""
