"""Activations of one's own, in whatever form they come: one SAE from the same rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hfsae import SAE
from hfsae.data import NonFiniteActivationsError
from hfsae.inputs.streams import OWN_ACTIVATIONS
from tests.training.tiny import sparse_rows, trainer

ROWS = sparse_rows(640)


def trained(folder: Path, activations) -> dict[str, torch.Tensor]:
    trainer(folder, inputs={"activations": activations}).train()
    return SAE.from_pretrained(folder).state_dict()


def mapped(folder: Path, rows: torch.Tensor) -> np.memmap:
    np.save(folder / "rows.npy", rows.numpy())
    return np.load(folder / "rows.npy", mmap_mode="r")


@pytest.mark.parametrize("kind", ["array", "map", "dictionary", "grad", "graph"])
def test_tables_of_any_kind_give_the_sae_that_their_tensor_gives(tmp_path: Path, kind: str, recwarn):
    made = {
        "array": lambda: ROWS.numpy(),
        "map": lambda: mapped(tmp_path, ROWS),
        "dictionary": lambda: {OWN_ACTIVATIONS: ROWS.numpy()},
        "grad": lambda: ROWS.clone().requires_grad_(),
        "graph": lambda: ROWS.clone().requires_grad_() * 1,
    }[kind]()
    expected, found = trained(tmp_path / "tensor", ROWS), trained(tmp_path / "other", made)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


@pytest.mark.parametrize("kind", ["loader", "arrays", "grad"])
def test_batches_of_any_kind_give_the_sae_that_tensors_give(tmp_path: Path, kind: str):
    batches = list(ROWS.split(64))
    made = {
        "loader": lambda: DataLoader(TensorDataset(ROWS), 64),
        "arrays": lambda: [batch.numpy() for batch in batches],
        "grad": lambda: [batch.clone().requires_grad_() * 1 for batch in batches],
    }[kind]()
    expected, found = trained(tmp_path / "tensor", batches), trained(tmp_path / "other", made)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("as_array", [True, False])
def test_nan_in_the_last_row_is_named_before_a_step(tmp_path: Path, value: float, as_array: bool):
    rows = ROWS.clone()
    rows[-1, 2] = value
    with pytest.raises(NonFiniteActivationsError, match="the last rows.*NaN or infinity at activations, in 1 of"):
        trained(tmp_path, rows.numpy() if as_array else rows)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "activations, message",
    [
        (DataLoader(TensorDataset(ROWS, ROWS), 64), "a list of 2, expected a tensor or numpy array"),
        (ROWS.numpy().astype("int64"), r"\(576?, ?\d+\) of int64|of int64, expected a floating-point"),
        ({"activations": [1.0]}, "are list, expected a floating-point tensor"),
        ([{}], "a dict of 0"),
        (["text"], "a str, expected a tensor or numpy array"),
    ],
    ids=["pairs", "int", "list", "nothing", "text"],
)
def test_what_is_no_activations_is_named(tmp_path: Path, activations, message: str):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, activations)
