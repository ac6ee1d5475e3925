import json

import pytest
from datasets import Dataset

from hfsae import SAE, SAETrainer
from hfsae.analysis import collect_features
from hfsae.dashboard import make_dashboard
from hfsae.evaluation import evaluate_sae
from hfsae.saved.measuring_again import evaluate_saved
from hfsae.saved.saved_report import write_saved_report
from tests.data.tiny import CHAT_TEMPLATE, WORDS, chat_tokenizer, language_model, pythia_like
from tests.quick import mostly_slow
from tests.training.tiny import arguments, sparse_rows, text, trainer


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


@pytest.mark.slow
def test_the_page_of_a_saved_sae_is_written_again_with_features_of_its_text(tmp_path):
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    text(2000).to_json(tmp_path / "text.jsonl")
    names = {"model_name_or_path": str(tmp_path / "lm"), "dataset_name": str(tmp_path / "text.jsonl")}
    run = tmp_path / "run"
    SAETrainer(args=arguments(run, steps=10, eval_tokens=300, html_report=True, **names)).train()
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    page = write_saved_report(run, disable_tqdm=True)
    again = page.read_text()
    assert page == run / "report.html" and "background: rgba" in again and again.count("data:image/png") >= 2
    assert before.partition("Examples of features")[0] == again.partition("Examples of features")[0]


def test_the_page_of_a_saved_sae_of_unnamed_activations_has_no_examples(tmp_path):
    trainer(tmp_path, steps=2, inputs={"activations": sparse_rows(200)}).train()
    assert "Examples of features" not in write_saved_report(tmp_path).read_text()


def test_the_page_of_a_crosscoder_has_no_examples_and_its_run_says_nothing_of_a_failure(tmp_path, capsys, caplog):
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    text(2000).to_json(tmp_path / "text.jsonl")
    names = {"model_name_or_path": str(tmp_path / "lm"), "dataset_name": str(tmp_path / "text.jsonl")}
    joined = {"architecture": "crosscoder", "hook_point": "resid_post.0+resid_post.2"}
    run = tmp_path / "run"
    SAETrainer(args=arguments(run, steps=10, eval_tokens=300, html_report=True, **names, **joined)).train()
    assert "no examples of features" not in caplog.text + capsys.readouterr().err
    before = (run / "report.html").read_text()
    assert "explained variance" in before and "Examples of features" not in before
    assert write_saved_report(run, disable_tqdm=True).read_text() == before


def conversations(count: int = 300) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": said}, {"role": "assistant", "content": "w1 w2"}] for said in text(count)["text"]
    ]


@pytest.mark.parametrize("assistant_only", mostly_slow([True, False], quick=[True]))
def test_a_run_on_conversations_saves_its_saes_and_their_pages_and_everything_reads_them_again(
    tmp_path, assistant_only
):
    template = (
        CHAT_TEMPLATE
        if assistant_only
        else CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    tokenizer = chat_tokenizer(template)
    language_model(vocab_size=WORDS + 6).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    rows = [{"messages": said, "source": "here"} for said in conversations()]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"chat": True, "assistant_only": assistant_only, "eval_tokens": 100, "evaluation_share": 0.3}
    places = {"model_name_or_path": str(tmp_path / "lm"), "dataset_name": str(tmp_path / "chat.jsonl")}
    args = arguments(
        tmp_path / "run",
        context_length=40,
        hook_point="resid_post.1-2",
        html_report=True,
        steps=10,
        **options,
        **places,
    )
    metrics = SAETrainer(args=args).train().metrics
    for name, recorded in metrics.items():
        folder = tmp_path / "run" / name
        assert "background: rgba" in (folder / "report.html").read_text()
        measured = evaluate_saved(folder, write=False)
        assert measured["n_tokens"] == recorded["n_tokens"] and measured["ce_clean"] == pytest.approx(
            recorded["ce_clean"]
        )
    assert make_dashboard(folder, tmp_path / "page.html", max_tokens=200).is_file()
    sae, model = SAE.from_pretrained(folder), language_model(vocab_size=WORDS + 6)
    dataset = Dataset.from_list(rows)
    collected = collect_features(sae, model, tokenizer, dataset, max_tokens=10**6).about.n_tokens
    # Two words of every conversation are the assistant's (what is special or at position 0 is left out), or all 32.
    assert collected == 300 * (2 if assistant_only else 32)
    assert evaluate_sae(sae, model, dataset, tokenizer, max_tokens=100)["n_tokens"] <= 100
