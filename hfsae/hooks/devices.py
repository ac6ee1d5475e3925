"""Where a model wants its inputs."""

import torch
from torch import nn


def input_device(model: nn.Module) -> torch.device:
    """Where token ids go; accelerate moves them itself, and offloaded weights say nothing of the device."""
    if hasattr(model, "_hf_hook"):
        return torch.device("cpu")
    return next(model.parameters()).device
