"""One thread, and no progress bars in the output of tests."""

import datasets
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_quiet_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    yield
    torch.set_num_threads(threads)
    datasets.enable_progress_bars()
