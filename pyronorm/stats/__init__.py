"""Pure functions on tensors: moments, whitening, and the law of batch noise."""

from pyronorm.stats.batch_noise import (
    log_var_mean,
    log_var_variance,
    shift_variance,
)
from pyronorm.stats.effective_batch_size import EffectiveBatchSizes, effective_batch_size
from pyronorm.stats.moments import Moments, channel_moments, merge_moments
from pyronorm.stats.whitening import Eigen, InverseRoot, Newton, centre_and_covary

__all__ = [
    "EffectiveBatchSizes",
    "Eigen",
    "InverseRoot",
    "Moments",
    "Newton",
    "centre_and_covary",
    "channel_moments",
    "effective_batch_size",
    "log_var_mean",
    "log_var_variance",
    "merge_moments",
    "shift_variance",
]
