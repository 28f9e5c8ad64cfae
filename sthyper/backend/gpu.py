"""GPUs of this machine: how many there are, and which trial gets which.

Nothing here loads torch or starts CUDA: the tuner asks ``nvidia-smi``, and each trial finds its GPUs in
``CUDA_VISIBLE_DEVICES``, which is set before its first line runs. To try an allocation without GPUs put an executable
``nvidia-smi`` on the ``PATH`` that prints lines such as ``GPU 0: Fake (UUID: GPU-0)``.
"""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["VISIBLE_DEVICES", "GpuOptions", "GpuPool", "get_num_gpus", "visible_gpus"]

logger = logging.getLogger(__name__)

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
PROBE_TIMEOUT = 10.0
"""Seconds that ``nvidia-smi`` may take."""

_GPU_LINE = re.compile(r"GPU (\d+):.*\(UUID: (GPU-[^)]+)\)")
_MIG_LINE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


def get_num_gpus() -> int:
    """Return the number of GPUs that this process may use; MIG devices count one each.

    ``CUDA_VISIBLE_DEVICES`` is respected. Without ``nvidia-smi``, or if that fails or takes more than 10 s, there
    are none. Neither torch is loaded nor CUDA started.
    """
    return len(visible_gpus())


def visible_gpus(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of the GPUs that a process may use, as ``CUDA_VISIBLE_DEVICES`` takes them, in its order.

    Args:
        environ: Environment of the process, default that of this one.
    """
    environ = os.environ if environ is None else environ
    wanted = environ.get(VISIBLE_DEVICES)
    if wanted is not None and not wanted.strip():
        return []
    gpus = _list_gpus()
    if wanted is None:
        return [name for gpu in gpus for name in gpu.names(any(g.parts for g in gpus))]
    found: list[str] = []
    for entry in (part.strip() for part in wanted.split(",")):
        # As CUDA does: what comes after the first entry that it does not know is not seen.
        if not _exists(entry, gpus) or entry in found:
            break
        found.append(entry)
    return found


@dataclass(frozen=True)
class _Gpu:
    index: int
    uuid: str
    parts: list[str]
    """UUIDs of its MIG devices."""

    def names(self, by_uuid: bool) -> list[str]:
        # Where a machine has MIG devices CUDA counts otherwise than nvidia-smi: only UUIDs are sure there.
        return self.parts or [self.uuid if by_uuid else str(self.index)]


def _list_gpus() -> list[_Gpu]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--list-gpus"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        logger.warning("nvidia-smi gave no answer within %.0f s: no GPU is assigned to trials", PROBE_TIMEOUT)
        return []
    except OSError:
        return []
    gpus: list[_Gpu] = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        if match := _GPU_LINE.match(line):
            gpus.append(_Gpu(int(match[1]), match[2], []))
        elif gpus and (match := _MIG_LINE.match(line)):
            gpus[-1].parts.append(match[1])
    return gpus


def _exists(entry: str, gpus: Sequence[_Gpu]) -> bool:
    if entry.isdigit():
        return int(entry) < len(gpus)
    if entry.startswith("GPU-"):
        return sum(gpu.uuid.startswith(entry) for gpu in gpus) == 1  # CUDA takes unique beginnings
    if entry.startswith("MIG-GPU-"):  # the older form, MIG-<UUID of the GPU>/<instance>/<instance>
        return any(entry.startswith(f"MIG-{gpu.uuid}/") for gpu in gpus)
    return any(part.startswith(entry) for gpu in gpus for part in gpu.parts) and len(entry) > len("MIG-")


@dataclass(frozen=True)
class GpuOptions:
    """What a user may say about GPUs; see :class:`sthyper.backend.LocalBackend`.

    Args:
        rotate: Whether trials get GPUs of their own; without it all of them see all.
        per_trial: GPUs of a trial: a whole number, 1/k for k trials that share one, or ``None`` for one each, shared
            where there are more workers than GPUs.
        to_use: Indices of the GPUs to use, ``None`` for all.

    Raises:
        TypeError: For values of the wrong type.
        ValueError: For numbers that are not allowed.
    """

    rotate: bool = True
    per_trial: float | None = None
    to_use: tuple[int, ...] | None = None

    @property
    def is_default(self) -> bool:
        """Whether the user asked for nothing in particular."""
        return self.per_trial is None and self.to_use is None

    @property
    def is_idle(self) -> bool:
        """Whether every trial is to see what the tuner sees."""
        return not self.rotate and self.to_use is None

    def __post_init__(self) -> None:
        if not isinstance(self.rotate, bool):
            raise TypeError(f"rotate_gpus must be True or False, got {self.rotate!r}")
        if self.per_trial is not None:
            self._check_per_trial(self.per_trial)
        if self.to_use is None:
            return
        if any(isinstance(index, bool) or not isinstance(index, int) for index in self.to_use):
            raise TypeError(f"gpus_to_use must be a list of ints or None, got {list(self.to_use)!r}")
        if not self.to_use or len(set(self.to_use)) < len(self.to_use) or min(self.to_use) < 0:
            raise ValueError(
                f"gpus_to_use must name different GPUs by numbers from 0 on, at least one, got {list(self.to_use)}; "
                "num_gpus_per_trial=0 hides all of them"
            )
        if self.per_trial == 0:
            raise ValueError("gpus_to_use has no effect with num_gpus_per_trial=0, which hides all GPUs; leave one out")

    def _check_per_trial(self, number: float) -> None:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"num_gpus_per_trial must be a number or None, got {number!r}")
        if not (number >= 0 and math.isfinite(number)) or (number >= 1 and number != int(number)):
            raise ValueError(f"num_gpus_per_trial must be {_ALLOWED}, got {number!r}")
        if 0 < number < 1 and abs(number * _sharers(number) - 1) > 1e-6:
            raise ValueError(
                f"num_gpus_per_trial must be {_ALLOWED}, got {number!r}; "
                f"the nearest that is allowed is 1/{_sharers(number)}"
            )
        if not self.rotate:
            raise ValueError(
                f"num_gpus_per_trial={number!r} has no effect with rotate_gpus=False, where all trials see all GPUs; "
                "leave one of them out"
            )


_ALLOWED = "a whole number (0, 1, 2, ...) or 1/k for k trials that share a GPU (1/2, 1/3, 0.25, ...)"


def _sharers(fraction: float) -> int:
    return max(2, round(1 / fraction))


class GpuPool:
    """Hands out GPUs: the least used first, that is free ones, then those with fewer earlier trials, then lower ones.

    Args:
        options: What the user said.
        gpus: The GPUs that the tuner may use, as ``CUDA_VISIBLE_DEVICES`` names them.
        n_workers: Trials that run at the same time.

    Raises:
        ValueError: If the GPUs do not suffice for what the user asked for explicitly.
    """

    def __init__(self, options: GpuOptions, gpus: Sequence[str], n_workers: int) -> None:
        self._gpus = _subset(gpus, options.to_use)
        self._rotate = options.rotate
        self._count = self._check(options.per_trial, n_workers)
        self._trials = [0] * len(self._gpus)
        self._assigned = [0] * len(self._gpus)
        self._held: dict[int, list[int]] = {}

    def take(self, trial_id: int) -> list[str]:
        """Return the GPUs for a run of a trial; they are the trial's until :meth:`release`."""
        if not self._rotate:
            return list(self._gpus)
        self.release(trial_id)
        order = sorted(range(len(self._gpus)), key=lambda i: (self._trials[i], self._assigned[i], i))
        held = sorted(order[: self._count])
        for index in held:
            self._trials[index] += 1
            self._assigned[index] += 1
        self._held[trial_id] = held
        return [self._gpus[index] for index in held]

    def release(self, trial_id: int) -> None:
        """Take back the GPUs of a trial, once its processes are gone; nothing happens if it has none."""
        for index in self._held.pop(trial_id, ()):
            self._trials[index] -= 1

    def _check(self, per_trial: float | None, n_workers: int) -> int:
        there = len(self._gpus)
        of_them = "there is none" if not there else f"there {'is' if there == 1 else 'are'} {there}"
        if per_trial is None:
            if self._rotate and n_workers > there:
                logger.warning(
                    "n_workers=%d trials share %d GPU%s; num_gpus_per_trial=1/%d says that this is meant, "
                    "num_gpus_per_trial=0 hides the GPUs from them",
                    n_workers,
                    there,
                    "" if there == 1 else "s",
                    math.ceil(n_workers / there),
                )
            return 1
        count = max(1, int(per_trial))
        if count > there:
            raise ValueError(
                f"num_gpus_per_trial={per_trial!r}: {of_them} (by nvidia-smi, {VISIBLE_DEVICES} and gpus_to_use)"
            )
        places = there // count if per_trial >= 1 else there * _sharers(per_trial)
        if n_workers > places:
            fitting = f"1/{math.ceil(n_workers / there)}" if n_workers > there else f"{there // n_workers}"
            raise ValueError(
                f"n_workers={n_workers} trials with num_gpus_per_trial={per_trial!r} need more GPUs than the {there}; "
                f"n_workers={places} or num_gpus_per_trial={fitting} fits"
            )
        return count


def _subset(gpus: Sequence[str], to_use: Sequence[int] | None) -> list[str]:
    if to_use is None:
        return list(gpus)
    for index in to_use:
        if index >= len(gpus):
            allowed = f"numbers from 0 to {len(gpus) - 1}" if gpus else "none, as there is no GPU"
            raise ValueError(f"gpus_to_use: there is no GPU {index}; allowed: {allowed}")
    return [gpus[index] for index in sorted(to_use)]
