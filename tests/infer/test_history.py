from __future__ import annotations

from pyronorm.infer import Epoch, History


def test_sums_over_epochs():
    history = History([Epoch(1, 2.0, 1.0, 0.1, 0.5), Epoch(2, 1.5, 1.0, 0.1, 0.25)], best_epoch=2)
    assert history.losses == [2.0, 1.5]
    assert history.seconds == 0.75
    assert history.epochs[0].validation_nll is None


def test_a_history_is_a_line_and_a_table():
    assert repr(History()) == "History(no epochs)"
    history = History(
        [Epoch(1, 2.0, 1.0, 0.1, 0.5), Epoch(2, 1.5, 1.0, 0.1, 0.25, 0.75)], best_epoch=1
    )
    assert repr(history) == (
        "History(2 epochs in 0.75 s, loss 2 to 1.5, validation NLL 0.75, parameters of epoch 1)"
    )
    table = history.to_dataframe()
    assert list(table.index) == [1, 2]
    assert list(table["loss"]) == [2.0, 1.5]
    assert table["validation_nll"].isna().tolist() == [True, False]
    assert "0.75" in history._repr_html_()
    assert History().to_dataframe().empty
