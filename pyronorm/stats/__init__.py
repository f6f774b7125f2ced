"""Pure functions on tensors: moments and the law of batch noise."""

from pyronorm.stats.batch_noise import (
    log_var_mean,
    log_var_variance,
    shift_variance,
)
from pyronorm.stats.moments import Moments, channel_moments, merge_moments

__all__ = [
    "Moments",
    "channel_moments",
    "log_var_mean",
    "log_var_variance",
    "merge_moments",
    "shift_variance",
]
