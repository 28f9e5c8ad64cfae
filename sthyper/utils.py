"""Helpers for training scripts: command line, JSON configurations, checkpoints.

A script that can be paused, killed and resumed looks like this::

    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    add_checkpointing_to_argparse(parser)
    config = vars(parser.parse_known_args()[0])

    load, save = pytorch_load_save_functions({"model": model, "optimizer": optimizer})
    start = resume_from_checkpointed_model(config, load)
    for epoch in range(start + 1, config["epochs"] + 1):
        ...                                                   # train and evaluate
        checkpoint_model_at_rung_level(config, save, epoch)   # first the checkpoint,
        report(epoch=epoch, accuracy=accuracy)                # then the report

torch is imported only by the functions of :func:`pytorch_load_save_functions`, when they are called.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sthyper._checkpoints import StatefulObject, TorchCheckpoints
from sthyper._space.domains import parse_bool
from sthyper._space.streamline import streamline_config_space
from sthyper.constants import ENV_CHECKPOINT_DIR, ST_CHECKPOINT_DIR, ST_CONFIG_JSON_FNAME_ARG

__all__ = [
    "add_checkpointing_to_argparse",
    "add_config_json_to_argparse",
    "checkpoint_model_at_rung_level",
    "load_config_json",
    "parse_bool",
    "pytorch_load_save_functions",
    "resume_from_checkpointed_model",
    "streamline_config_space",
]

Config = Mapping[str, Any] | argparse.Namespace


def add_checkpointing_to_argparse(parser: argparse.ArgumentParser) -> None:
    """Add the optional argument ``--st_checkpoint_dir``, the folder for the checkpoints of this trial.

    Args:
        parser: The parser of a training script.
    """
    parser.add_argument(f"--{ST_CHECKPOINT_DIR}", type=str, default=None, help="folder of this trial's checkpoints")


def _checkpoint_dir(config: Config) -> str | None:
    values = vars(config) if isinstance(config, argparse.Namespace) else config
    if not isinstance(values, Mapping):
        raise TypeError(f"config must be a mapping or an argparse.Namespace, got {config!r}")
    given = values.get(ST_CHECKPOINT_DIR) or os.environ.get(ENV_CHECKPOINT_DIR)
    return None if not given else os.fspath(given)


def _announce(config: Config, text: str) -> None:
    values = vars(config) if isinstance(config, argparse.Namespace) else config
    if "trial_id" in values:
        print(f"trial {values['trial_id']}: {text}", flush=True)


def resume_from_checkpointed_model(config: Config, load_model_fn: Callable[[str], int]) -> int:
    """Load the trial's checkpoint, if there is one.

    Args:
        config: The script's arguments. The folder is ``config["st_checkpoint_dir"]``, or else that of the environment
            variable ``STHYPER_CHECKPOINT_DIR``, which every trial has.
        load_model_fn: Called with the folder; loads and returns the resource (number of epochs done), 0 if nothing
            could be loaded.

    Returns:
        The resource that is done; training goes on at the next. 0 without a folder.
    """
    folder = _checkpoint_dir(config)
    if folder is None or not os.path.isdir(folder):
        return 0
    resource = load_model_fn(folder)
    if resource:
        _announce(config, f"resumed from the checkpoint at resource {resource} in {folder}")
    return resource


def checkpoint_model_at_rung_level(config: Config, save_model_fn: Callable[[str, int], Any], resource: int) -> None:
    """Save a checkpoint; to be called before the report of the same resource.

    Args:
        config: The script's arguments; see :func:`resume_from_checkpointed_model`. Without a folder nothing is done.
        save_model_fn: Called with the folder, which exists, and the resource.
        resource: Number of epochs done. Every call saves, so that a trial can be resumed at any.
    """
    folder = _checkpoint_dir(config)
    if folder is None:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_model_fn(folder, resource)
    _announce(config, f"checkpoint at resource {resource} written to {folder}")


def pytorch_load_save_functions(
    state_dict_objects: Mapping[str, StatefulObject],
    mutable_state: dict[str, Any] | None = None,
    fname: str = "checkpoint.json",
) -> tuple[Callable[[str], int], Callable[[str, int], None]]:
    """Make the functions that :func:`resume_from_checkpointed_model` and
    :func:`checkpoint_model_at_rung_level` need.

    A checkpoint is written to a temporary file, synced and renamed, so that a kill at any moment leaves a whole one.
    The one before it stays as ``fname + ".previous"``: a trial that is killed between checkpoint and report goes on
    from the last *reported* resource (``STHYPER_LAST_RESOURCE``), and trains one epoch again instead of skipping its
    report. Files are read with ``torch.load(weights_only=True)``, which executes no code, on the CPU.

    Args:
        state_dict_objects: Objects with ``state_dict`` and ``load_state_dict``, by name: model, optimiser, scheduler.
        mutable_state: Further values (numbers, strings, bools, ``None``, lists and dictionaries of these); the
            dictionary is updated in place when a checkpoint is loaded, each value in the type that it had.
        fname: Name of the file in the folder.

    Returns:
        ``(load_model_fn, save_model_fn)``. ``load_model_fn(folder)`` returns the resource, 0 if there is nothing to
        load. A file that cannot be read or does not fit is warned of (``RuntimeWarning``) and the one before it is
        taken, if there is one. ``save_model_fn(folder, resource)`` raises ``TypeError`` if a state holds something
        that could not be loaded again.

    Raises:
        TypeError: If an object lacks ``state_dict`` or ``load_state_dict``.
        ValueError: If ``fname`` is no plain file name.
    """
    checkpoints = TorchCheckpoints(state_dict_objects, mutable_state, fname)
    return checkpoints.load, checkpoints.save


def add_config_json_to_argparse(parser: argparse.ArgumentParser) -> None:
    """Add the argument ``--st_config_json_filename``, a JSON file with the trial's configuration.

    Args:
        parser: The parser of a training script.
    """
    parser.add_argument(
        f"--{ST_CONFIG_JSON_FNAME_ARG}", type=str, default=None, help="JSON file with this trial's configuration"
    )


def load_config_json(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the JSON file that the arguments name, updated by the arguments.

    Args:
        args: Parsed arguments, ``vars(parser.parse_args())``. An argument wins over the entry of the same name, so
            give no default to an argument that the file has; arguments that are ``None`` do not count. Without a
            file name (script run by hand) the arguments are all there is.

    Returns:
        The configuration; lists, dictionaries, numbers and bools as they were written.

    Raises:
        ValueError: If the argument for the file name is not among ``args``, or the file holds no JSON object.
        FileNotFoundError: If the file does not exist.
    """
    if ST_CONFIG_JSON_FNAME_ARG not in args:
        raise ValueError(
            f"args must hold {ST_CONFIG_JSON_FNAME_ARG!r}: call add_config_json_to_argparse(parser) before parsing"
        )
    fname = args[ST_CONFIG_JSON_FNAME_ARG]
    if fname is None:
        return dict(args)
    try:
        config = json.loads(Path(fname).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{ST_CONFIG_JSON_FNAME_ARG}: {fname} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{ST_CONFIG_JSON_FNAME_ARG}: {fname} must hold a JSON object, got {type(config).__name__}")
    given = {k: v for k, v in args.items() if v is not None}
    return {**dict.fromkeys(args), **config, **given}
