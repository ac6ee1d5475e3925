"""What older versions of other libraries cannot do, as reasons to skip: no test fails for it at the floors."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from packaging.version import Version
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

OLDER_TRANSFORMERS = Version(transformers.__version__) < Version("5.23")  # than that the tests were written with
OLDER_TORCH = Version(torch.__version__) < Version("2.7")

# In older versions a block's own hooks lie in what gradient checkpointing runs again.
HOOKS_OUTSIDE_OF_CHECKPOINTS = GradientCheckpointingLayer.__call__ is nn.Module.__call__

compiles_models = pytest.mark.skipif(OLDER_TORCH, reason="torch 2.6 cannot compile transformers' models (NameError)")


@contextmanager
def skipping_unknown_models() -> Iterator[None]:
    """Skips where an older transformers has no such model, or refuses its own default config."""
    try:
        yield
    except (AttributeError, KeyError, StrictDataclassError) as error:
        if not OLDER_TRANSFORMERS:
            raise
        pytest.skip(f"transformers {transformers.__version__} cannot make it: {error}")
