"""Tensors that cannot be a module's are named before anything is loaded."""

import warnings

import pytest
import torch
from torch import nn

from detr_container.models.weights.fit import listed, load_checked, state_faults, tensor_fault


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (torch.zeros(2, 3), ""),
        (torch.zeros(2, 3, dtype=torch.float64), ""),
        (torch.zeros(2, 3, dtype=torch.bfloat16), ""),
        (torch.zeros(3, 2).t(), ""),
        (nn.Parameter(torch.zeros(1, 3).expand(2, 3)), ""),
        (torch.zeros(3, 2), "is [3, 2], not [2, 3]"),
        (torch.zeros(2, 3, dtype=torch.complex64), "holds complex64, not float32"),
        (torch.zeros(2, 3, dtype=torch.int64), "holds int64, not float32"),
        (torch.zeros(2, 3, dtype=torch.bool), "holds bool, not float32"),
        (torch.zeros(2, 3, dtype=torch.float8_e4m3fn), "holds float8_e4m3fn, not float32"),
        (torch.zeros(2, 3).to_sparse(), "is not a plain tensor (sparse_coo)"),
        (torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]), "is not a plain tensor (nested)"),
        (torch.zeros(2, 3, device="meta"), "is an empty shell without values (device meta)"),
        ([[0.0] * 3] * 2, "is a list, not a tensor"),
        (None, "is a NoneType, not a tensor"),
    ],
)
def test_every_kind_of_tensor(found: object, fault: str) -> None:
    assert tensor_fault(found, (2, 3), torch.float32) == fault


def test_whole_numbers_and_quantized_ones() -> None:
    assert tensor_fault(torch.zeros((), dtype=torch.int32), (), torch.int64) == ""
    assert tensor_fault(torch.zeros(()), (), torch.int64) == "holds float32, not int64"
    assert (
        tensor_fault(torch.zeros((), dtype=torch.float64), (), torch.float32, exact=True)
        == "holds float64, not float32"
    )
    assert tensor_fault(quantized(), (2, 3), torch.float32) == "is not a plain tensor (quantized, qint8)"


def test_a_state_is_looked_at_whole_and_nothing_is_loaded_of_a_wrong_one() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    own = {name: value.clone() for name, value in module.state_dict().items()}
    assert state_faults(own, dict(own)) == []
    wrong = {name: value + 1 for name, value in own.items() if name != "1.num_batches_tracked"}
    assert state_faults(own, wrong, optional=["num_batches_tracked"]) == []
    wrong |= {"0.bias": torch.zeros(3), "1.weight": torch.zeros(2, dtype=torch.complex64), "more": torch.zeros(1)}
    expected = [
        "0.bias is [3], not [2]",
        "1.weight holds complex64, not float32",
        "1.num_batches_tracked is missing",
        "'more' is unknown to the model",
    ]
    assert state_faults(own, wrong) == expected
    with pytest.raises(ValueError, match=r"^x\.pt is another's: 0\.bias is .* unknown to the model\. Take y$"):
        load_checked(module, wrong, "x.pt is another's", "Take y")
    assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())
    load_checked(module, {name: value + 1 for name, value in own.items()}, "", "")
    assert all(torch.equal(value, own[name] + 1) for name, value in module.state_dict().items())
    assert state_faults(own, [1]) == ["the weights are a list, not a dict of tensors"]
    assert listed(["a"] * 7) == "a; a; a; a and 3 more"
