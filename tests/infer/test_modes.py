from __future__ import annotations

import threading

import pytest
from torch import nn

from pyronorm.infer.modes import evaluation_mode, kept_modes


def test_modes_are_given_back_to_every_module():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    network[1][0].eval()
    before = [m.training for m in network.modules()]
    with evaluation_mode(network):
        assert not any(m.training for m in network.modules())
    assert [m.training for m in network.modules()] == before
    with pytest.raises(ZeroDivisionError), kept_modes(network):
        network.train()
        1 / 0  # noqa: B018
    assert [m.training for m in network.modules()] == before


def test_contexts_of_several_threads_may_overlap():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    network[1].eval()
    before = [m.training for m in network.modules()]
    first, second, part = (
        evaluation_mode(network),
        evaluation_mode(network),
        evaluation_mode(network[2]),
    )
    first.__enter__()
    second.__enter__()
    part.__enter__()
    first.__exit__(None, None, None)
    assert not any(m.training for m in network.modules())
    second.__exit__(None, None, None)
    assert [m.training for m in network.modules()] == [*before[:3], False, False]
    part.__exit__(None, None, None)
    assert [m.training for m in network.modules()] == before


def test_a_thread_that_enters_while_another_does_changes_nothing():
    entered, inside, left = threading.Event(), threading.Event(), threading.Event()

    def enter_and_leave():
        with evaluation_mode(network):
            entered.set()
            inside.wait(10)
        left.set()

    other = threading.Thread(target=enter_and_leave)

    class Meeting(nn.Linear):
        def train(self, mode=True):
            if not mode and other.ident is None:
                other.start()
                entered.wait(0.2)
            return super().train(mode)

    network = nn.Sequential(Meeting(2, 2), nn.Dropout())
    with evaluation_mode(network):
        inside.set()
        assert left.wait(10)
        assert not any(m.training for m in network.modules())
    assert all(m.training for m in network.modules())


def test_contexts_nest():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with evaluation_mode(network):
        network[1].train()
        with evaluation_mode(network):
            assert not network[1].training
        assert network[1].training
        assert not network[0].training
    assert all(m.training for m in network.modules())


def test_modules_that_do_more_than_set_a_flag_are_asked():
    class Merging(nn.Linear):
        calls = ()

        def train(self, mode=True):
            self.calls = (*self.calls, mode)
            return super().train(mode)

    network = nn.Sequential(nn.Dropout(), Merging(2, 2))
    with evaluation_mode(network):
        assert network[1].calls == (False,)
    assert network[1].calls == (False, True)
