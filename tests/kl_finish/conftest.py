from tests.training.conftest import one_quiet_thread  # noqa: F401
