"""Flags reach every process one step after they were set, and are read once."""

import torch

from detr_container.engine.control import Control, Flags


def test_flags_are_read_a_step_later() -> None:
    control = Control()
    assert control.pending() == Flags()
    assert control.exchange(torch.tensor([1.0, 0.0, 0.0])) == Flags()
    assert control.pending() == Flags(stop=True)
    assert control.exchange(torch.tensor([0.0, 2.0, 0.0])) == Flags(stop=True)
    assert control.exchange(torch.tensor([0.0, 0.0, 1.0])) == Flags(save=True)
    assert control.exchange(torch.zeros(3)) == Flags(bad=True)
    assert control.exchange(torch.zeros(3)) == Flags()


def test_what_is_sent_does_not_change_with_the_tensor() -> None:
    control, summed = Control(), torch.tensor([1.0, 0.0, 0.0])
    control.exchange(summed)
    summed.zero_()
    assert control.pending().stop
