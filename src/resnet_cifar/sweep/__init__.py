"""Many cells at once, on this machine or on a Ray cluster, each recorded in DVC."""

import os

# Before Ray is imported, which would report to its makers and warn about a change of its defaults.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
