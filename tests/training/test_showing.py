from tests.data.tiny import language_model
from tests.training.tiny import sparse_rows, text, trainer


def test_a_run_without_a_tracker_ends_with_a_page_that_shows_features(tmp_path):
    inputs = {"model": language_model(), "train_dataset": text(2000)}
    trainer(tmp_path, steps=10, eval_tokens=300, html_report=None, inputs=inputs).train()
    page = (tmp_path / "report.html").read_text()
    assert "explained variance" in page and "feature " in page and "background: rgba" in page


def test_a_run_that_is_not_evaluated_has_its_page_too(tmp_path):
    inputs = {"model": language_model(), "train_dataset": text(2000), "eval_dataset": text(200)}
    trainer(tmp_path, steps=10, eval_tokens=0, html_report=True, inputs=inputs).train()
    assert "background: rgba" in (tmp_path / "report.html").read_text()


def test_it_is_left_out_where_it_is_not_wanted_or_a_tracker_watches(tmp_path):
    trainer(tmp_path / "no", steps=1).train()
    trainer(tmp_path / "tracked", steps=1, html_report=None, report_to="tensorboard").train()
    assert not list(tmp_path.rglob("report.html"))


def test_activations_of_ones_own_have_a_page_without_examples(tmp_path):
    trainer(tmp_path, steps=2, html_report=True, inputs={"activations": sparse_rows(200)}).train()
    page = (tmp_path / "report.html").read_text()
    assert "Examples of features" not in page and "data:image/png" in page
