"""Column names, limits and environment names that all parts share."""

# Fields that the Reporter adds to every report.
ST_WORKER_ITER = "st_worker_iter"
"""Number of report calls of this process so far, from 0."""
ST_WORKER_TIMESTAMP = "st_worker_timestamp"
"""Unix time of the report, seconds."""
ST_WORKER_TIME = "st_worker_time"
"""Seconds since the Reporter was made."""
ST_WORKER_COST = "st_worker_cost"
"""Cost so far of this run, in the currency of ``cost_per_hour``."""
ST_RETURNED = "st_returned"
"""Only on its way to the backend, which takes it off: the report is what a tuned function returned; the value says
whether that was a number or a dictionary with the metric."""

# Columns that the tuner adds to the results.
ST_TRIAL_ID = "trial_id"
ST_DECISION = "st_decision"
"""The answer that the trial got."""
ST_SCHEDULER_DECISION = "st_scheduler_decision"
"""What the scheduler decided (differs from the answer at the maximum resource)."""
ST_STATUS = "st_status"
ST_TUNER_TIME = "st_tuner_time"
"""Seconds that the tuner had run when the report arrived."""
ST_TUNER_TIMESTAMP = "st_tuner_timestamp"
ST_SEED = "st_seed"
ST_RUN = "st_run"
"""0 for the first run of a trial, one more at every resume or restart."""
ST_MILESTONE = "st_milestone"
"""Resource level at which the scheduler decides next about the trial."""
ST_END_REASON = "st_end_reason"
ST_INSTANCE_TYPE = "st_instance_type"
ST_INSTANCE_COUNT = "st_instance_count"
CONFIG_PREFIX = "config_"
RESERVED_PREFIX = "st_"

# Arguments of training scripts.
ST_CHECKPOINT_DIR = "st_checkpoint_dir"
ST_CONFIG_JSON_FNAME_ARG = "st_config_json_filename"

# Files of an experiment.
ST_METADATA_FILENAME = "metadata.json"
ST_RESULTS_DATAFRAME_FILENAME = "results.csv.zip"
ST_JOURNAL_FILENAME = "journal.jsonl"
ST_LOCK_FILENAME = "lock"
ST_TUNER_FILENAME = "tuner.json"
"""What the tuner was made with; readable by its owner only, as environment variables may be secret."""
ST_CHANNEL_FILENAME = "channel.json"
"""Where the tuner listens, with the trials' token; readable by its owner only."""
ST_TRIALS_DIRNAME = "trials"
ST_SNAPSHOTS_DIRNAME = "snapshots"
ST_CONFIG_FILENAME = "config.json"
ST_CHECKPOINTS_DIRNAME = "checkpoints"
ST_STDOUT_FILENAME = "std.out"
ST_STDERR_FILENAME = "std.err"

# Keys of metadata.json.
ST_TUNER_CREATION_TIMESTAMP = "st_tuner_creation_timestamp"
ST_TUNER_START_TIMESTAMP = "st_tuner_start_timestamp"
ST_DATETIME_FORMAT = "%Y-%m-%d-%H-%M-%S"

# Where experiments live.
STHYPER_ENV_FOLDER = "STHYPER_FOLDER"
STHYPER_DEFAULT_FOLDER = "sthyper"

# Environment of a trial (see docs/protocol.md).
ENV_CHANNEL = "STHYPER_CHANNEL"
ENV_TOKEN = "STHYPER_TOKEN"
ENV_TRIAL_ID = "STHYPER_TRIAL_ID"
ENV_RUN = "STHYPER_RUN"
ENV_TRIAL_DIR = "STHYPER_TRIAL_DIR"
ENV_TRIALS_DIR = "STHYPER_TRIALS_DIR"
ENV_CHECKPOINT_DIR = "STHYPER_CHECKPOINT_DIR"
ENV_LAST_RESOURCE = "STHYPER_LAST_RESOURCE"
ENV_SEED = "STHYPER_SEED"
ENV_OBJECTIVE = "STHYPER_OBJECTIVE"
ENV_LIGHTNING = "STHYPER_LIGHTNING"
ENV_COST_PER_HOUR = "STHYPER_COST_PER_HOUR"
ENV_RECONNECT_GRACE = "STHYPER_RECONNECT_GRACE"
DEFAULT_RECONNECT_GRACE = 120.0
"""Seconds that a trial over TCP and its tuner look for each other after one of them was lost."""
ENV_PRELOADED_UNTIL = "STHYPER_PRELOADED_UNTIL"
"""Set in forked trials: the last module that the fork server had loaded."""
ENV_QUIET = "STHYPER_QUIET"
ENV_VERBOSE = "STHYPER_VERBOSE"

MAX_REPORT_BYTES = 50_000
"""Largest size of one report on the wire."""
MAX_METRIC_DEPTH = 32
"""Levels of lists and objects in the metrics of a report."""
REPORT_TAG = "tune-metric"
"""Tag of a report that is printed on stdout."""
MAX_TUNER_NAME_LENGTH = 63
TUNER_DEFAULT_SLEEP_TIME = 5.0
