from __future__ import annotations

from pyronorm.infer import Epoch, History


def test_sums_over_epochs():
    history = History([Epoch(1, 2.0, 1.0, 0.1, 0.5), Epoch(2, 1.5, 1.0, 0.1, 0.25)], best_epoch=2)
    assert history.losses == [2.0, 1.5]
    assert history.seconds == 0.75
    assert history.epochs[0].validation_nll is None
