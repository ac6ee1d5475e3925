"""One thread, no progress bars in the output of tests, and devices found anew where a test asks for it."""

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(scope="session", autouse=True)
def one_quiet_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    yield
    torch.set_num_threads(threads)
    datasets.enable_progress_bars()


@pytest.fixture
def accelerate_starts_anew():
    """Accelerate remembers the device of its first accelerator, a CPU in most tests."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
