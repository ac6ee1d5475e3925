import copy
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pandas
import polars
import pyarrow.parquet as parquet
import pytest
import torch
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hfsae import FeatureTable, featurize
from hfsae.tables.table import ABOUT, read_about
from tests.analysis.tiny import N_FEATURES, Token, read_longhand, setting, texts


@cache
def longhand() -> list[Token]:
    return read_longhand(texts(), setting())


def of_documents(reduce: str) -> np.ndarray:
    """(documents, features) from the tokens one by one."""
    rows: list[list[torch.Tensor]] = [[] for _ in texts()]
    for token in longhand():
        rows[token.document].append(token.features)
    made = {
        "max": lambda tokens: tokens.amax(0),
        "mean": lambda tokens: tokens.mean(0),
        "count": lambda tokens: (tokens > 0).sum(0).float(),
        "last": lambda tokens: tokens[-1],
    }[reduce]
    return torch.stack([made(torch.stack(row)) if row else torch.zeros(N_FEATURES) for row in rows]).numpy()


def write(output: Path, documents=None, **options) -> FeatureTable | None:
    given = texts() if documents is None else documents
    return featurize(*setting(), given, output, **{"disable_tqdm": True, "documents_per_shard": 7, **options})


def table_of(*args, **options) -> FeatureTable:
    table = write(*args, **options)
    assert table is not None
    return table


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reduce", ["max", "mean", "count", "last"])
def test_documents_are_what_their_tokens_say_one_by_one(tmp_path: Path, reduce):
    table = table_of(tmp_path / "t.parquet", reduce=reduce, batch_size=3)
    np.testing.assert_allclose(table.to_csr().toarray(), of_documents(reduce), atol=1e-4)
    assert table.to_pandas()["document"].tolist() == list(range(len(texts())))
    per_document = Counter(token.document for token in longhand())
    assert table.to_pandas()["n_tokens"].tolist() == [per_document[i] for i in range(len(texts()))]


def test_tokens_are_those_that_count_in_the_order_of_the_text(tmp_path: Path):
    table = table_of(tmp_path / "t", level="token", batch_size=3)
    expected = longhand()
    frame = table.to_pandas()
    assert frame["document"].tolist() == [token.document for token in expected]
    assert frame["position"].tolist() == [token.position for token in expected]
    assert frame["token_id"].tolist() == [token.piece[token.column] for token in expected]
    dense = torch.stack([token.features for token in expected]).numpy()
    np.testing.assert_allclose(table.to_csr().toarray(), dense, atol=1e-4)
    assert all(list(row) == sorted(row) for row in frame["features"])


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), st.sampled_from(["document", "token"]))
def test_shards_and_batches_change_nothing(tmp_path_factory, seed: int, per_shard: int, batch: int, level):
    folder, given_texts = tmp_path_factory.mktemp("t"), texts(9, seed)
    one = table_of(folder / "a.parquet", given_texts, level=level, documents_per_shard=100)
    other = table_of(folder / "b", given_texts, level=level, documents_per_shard=per_shard, batch_size=batch)
    np.testing.assert_allclose(one.to_csr().toarray(), other.to_csr().toarray(), atol=1e-5)
    assert one.to_pandas()["document"].tolist() == other.to_pandas()["document"].tolist()


def test_some_features_alone_keep_their_numbers(tmp_path: Path):
    table = table_of(tmp_path / "t.parquet", features=[7, 3, 7])
    assert f" rows of 2 of {N_FEATURES} features, one a document" in repr(table)
    expected = of_documents("max")
    expected[:, [i for i in range(N_FEATURES) if i not in (3, 7)]] = 0
    np.testing.assert_allclose(table.to_csr().toarray(), expected, atol=1e-4)
    assert table.about["features"] == [3, 7]


# -- read by others ---------------------------------------------------------------------------------------------------
def test_pandas_polars_and_datasets_read_what_is_written(tmp_path: Path):
    rows = Dataset.from_dict(
        {"text": texts(), "id": [f"d{i}" for i in range(len(texts()))], "label": [0] * len(texts())}
    )
    file = tmp_path / "t.parquet"
    table = table_of(file, rows, columns=["id", "label"])
    frames = pandas.read_parquet(file), polars.read_parquet(file).to_pandas(), table.to_dataset().to_pandas()
    for frame in (
        *frames,
        load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path / "c"))["train"].to_pandas(),
    ):
        assert frame["id"].tolist() == rows["id"] and not frame["label"].any()
        assert [list(row) for row in frame["features"]] == [list(row) for row in frames[0]["features"]]
        assert [list(row) for row in frame["values"]] == [list(row) for row in frames[0]["values"]]
    assert repr(table).startswith(f"FeatureTable({len(texts())} rows of {N_FEATURES} features, one a document, max;")


def test_columns_go_with_the_tokens_of_their_document(tmp_path: Path):
    rows = Dataset.from_dict({"text": texts(), "id": [f"d{i}" for i in range(len(texts()))]})
    frame = table_of(tmp_path / "t", rows, level="token", columns=["id"]).to_pandas()
    assert frame["id"].tolist() == [f"d{document}" for document in frame["document"]]


def test_streams_and_columns_of_another_name(tmp_path: Path):
    rows = Dataset.from_dict({"words": texts(), "more": texts()})
    table = table_of(tmp_path / "a", rows.to_iterable_dataset(), text_column="words", columns=["more"])
    np.testing.assert_allclose(table.to_csr().toarray(), of_documents("max"), atol=1e-4)
    with pytest.raises(ValueError, match="text_column"):
        write(tmp_path / "b", rows)


def test_documents_without_a_token_have_a_row_without_features(tmp_path: Path):
    frame = table_of(tmp_path / "t.parquet", ["", "w1 w2", "w3"]).to_pandas()
    assert [len(row) > 0 for row in frame["features"]] == [False, True, False]
    assert frame["n_tokens"].tolist() == [0, 1, 0]
    assert len(table_of(tmp_path / "u.parquet", [""], level="token")) == 0


# -- interrupted, shared out, in the way -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["t.parquet", "t"])
def test_what_was_interrupted_goes_on_and_ends_with_the_same_rows(tmp_path: Path, name: str, monkeypatch):
    whole = table_of(tmp_path / "whole").to_pandas()
    reads = []

    class Stopped(Exception):
        pass

    from hfsae.analysis.feature_reader import FeatureReader

    read = FeatureReader.read

    def read_some(self, batch):
        reads.append(batch)
        if len(reads) == 4:
            raise Stopped
        return read(self, batch)

    monkeypatch.setattr(FeatureReader, "read", read_some)
    with pytest.raises(Stopped):
        write(tmp_path / name)
    assert not (tmp_path / "t.parquet").exists()
    again = table_of(tmp_path / name).to_pandas()
    n_shards = -(-len(texts()) // 7)
    assert len(reads) == 4 + n_shards - 3  # a batch a shard: three were there
    pandas.testing.assert_frame_equal(again, whole)
    assert not list(tmp_path.glob(f"{name}*shards"))


def test_processes_write_one_folder(tmp_path: Path):
    assert write(tmp_path / "t", rank=0, world_size=2) is None
    with pytest.raises(ValueError, match="lacks its parts? 1, 3"):
        FeatureTable(tmp_path / "t")
    both = write(tmp_path / "t", rank=1, world_size=2)
    assert both is not None
    pandas.testing.assert_frame_equal(both.to_pandas(), table_of(tmp_path / "one").to_pandas())


def test_a_table_that_is_there_is_not_made_again_and_another_is_not_lost(tmp_path: Path):
    before = table_of(tmp_path / "t.parquet")
    times = before.path.stat().st_mtime_ns
    assert table_of(tmp_path / "t.parquet").about == before.about and before.path.stat().st_mtime_ns == times
    with pytest.raises(FileExistsError, match="reduce was 'max' and is 'mean'"):
        write(tmp_path / "t.parquet", reduce="mean")
    table_of(tmp_path / "u")
    with pytest.raises(FileExistsError, match="level was 'document' and is 'token'"):
        write(tmp_path / "u", level="token")
    later = {ABOUT: json.dumps(before.about | {"rounded": True}).encode()}  # what another version may tell
    parquet.write_table(parquet.read_table(before.path).replace_schema_metadata(later), before.path)
    with pytest.raises(FileExistsError, match="rounded was True and is None"):
        write(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["t.parquet", "t"])
def test_a_table_of_other_settings_is_not_taken_for_this_one(tmp_path: Path, name: str):
    sae, model, tokenizer = setting()
    options = {"disable_tqdm": True, "documents_per_shard": 7}
    table_of(tmp_path / name)
    with pytest.raises(FileExistsError, match=r"settings\.k was 4 and is 2"):
        featurize(sae.with_k(2), model, tokenizer, texts(), tmp_path / name, **options)


def test_a_table_that_an_earlier_version_began_goes_on(tmp_path: Path):
    table = table_of(tmp_path / "t")
    files = sorted((tmp_path / "t").iterdir())
    for file in files[:2]:
        older = {ABOUT: json.dumps({n: v for n, v in read_about(file).items() if n != "settings"}).encode()}
        parquet.write_table(parquet.read_table(file).replace_schema_metadata(older), file)
    files[2].unlink()
    again = table_of(tmp_path / "t")
    assert again.about == {name: value for name, value in table.about.items() if name != "settings"}
    pandas.testing.assert_frame_equal(again.to_pandas(), table_of(tmp_path / "one").to_pandas())


@pytest.mark.parametrize("name", ["t.parquet", "t"])
def test_other_documents_are_no_part_of_a_table_that_is_there(tmp_path: Path, name: str):
    rows = [*texts()]
    table_of(tmp_path / name, rows)
    rows[-1] = "w9 w8 w7"
    with pytest.raises(FileExistsError, match="documents_sha256 was"):
        write(tmp_path / name, rows)
    columns = Dataset.from_dict({"a": texts(), "b": texts()[::-1]})
    table_of(tmp_path / f"columns_{name}", columns, text_column="a", columns=["a", "b"])
    with pytest.raises(FileExistsError, match="text_column was 'a' and is 'b'"):
        write(tmp_path / f"columns_{name}", columns, text_column="b", columns=["a", "b"])


@pytest.mark.parametrize("name", ["t.parquet", "t"])
def test_columns_of_a_stream_whose_first_rows_have_no_value(tmp_path: Path, name: str):
    labels = [*[None] * (len(texts()) - 1), 3]
    rows = [{"text": text, "label": label} for text, label in zip(texts(), labels, strict=True)]
    stream = Dataset.from_list(rows).to_iterable_dataset().map(dict)
    frame = table_of(tmp_path / name, stream, columns=["label"]).to_pandas()
    assert frame["label"].isna().sum() == len(texts()) - 1 and frame["label"].iloc[-1] == 3


def test_masks_choose_the_features_that_they_say(tmp_path: Path):
    mask = torch.zeros(N_FEATURES, dtype=torch.bool)
    mask[[3, 7]] = True
    assert table_of(tmp_path / "t", features=mask).about["features"] == [3, 7]


def test_a_folder_may_be_called_as_files_are(tmp_path: Path):
    (tmp_path / "t.parquet").mkdir()
    assert len(table_of(tmp_path / "t.parquet")) == len(texts())


def test_a_folder_that_lacks_its_end_says_so(tmp_path: Path):
    table_of(tmp_path / "t")
    sorted((tmp_path / "t").iterdir())[-1].unlink()
    with pytest.raises(ValueError, match="lacks its end: call `hfsae featurize` again"):
        FeatureTable(tmp_path / "t")


def test_a_disk_that_is_too_small_is_said_after_the_first_shard(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(OSError, match="of features are still to be written: free some space"):
        write(tmp_path / "t")
    monkeypatch.undo()
    assert len(list((tmp_path / "t").glob("*.parquet"))) == 1
    assert len(table_of(tmp_path / "t")) == len(texts())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "word"}, "level is 'word', expected one of 'document', 'token'"),
        ({"reduce": "sum"}, "reduce is 'sum'"),
        ({"features": [N_FEATURES]}, "expected indices from 0"),
        ({"columns": ["title"]}, "the dataset has no column 'title'; it has 'text'"),
        ({"world_size": 2}, "several processes write a folder"),
        ({"documents_per_shard": 0}, "documents_per_shard must be positive"),
        ({"documents": []}, "no document"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of world_size=2"),
        ({"world_size": 0}, "rank is 0 of world_size=0"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"context_length": -1}, "context_length must be positive, got -1"),
        ({"features": [1.5]}, "are no whole numbers"),
        ({"features": torch.ones(3, dtype=torch.bool)}, "a mask of 3, but the SAE has 40"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "t.parquet", **options)
    assert not list(tmp_path.iterdir())


def test_in_bfloat16_the_table_is_of_the_model_loaded_in_it(tmp_path: Path):
    sae, model, tokenizer = setting()
    given = texts(), tmp_path / "narrow.parquet"
    alike = {"documents_per_shard": 7, "disable_tqdm": True}
    narrow = featurize(sae, copy.deepcopy(model).bfloat16(), tokenizer, *given, **alike)
    table = table_of(tmp_path / "t.parquet", bf16=True)
    assert narrow is not None and (narrow.to_csr() != table.to_csr()).nnz == 0
    assert read_about(tmp_path / "t.parquet")["model_precision"] == "bfloat16"
    with pytest.raises(FileExistsError, match="model_precision"):
        write(tmp_path / "t.parquet")


def test_what_json_cannot_hold_and_columns_that_are_no_list_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="expected values that JSON can hold"):
        write(tmp_path / "t", text={"a": tmp_path})
    with pytest.raises(TypeError, match=r"expected a list of names: \['text'\]"):
        write(tmp_path / "t", columns="text")
    assert not list(tmp_path.iterdir())


def test_what_fills_up_rows_of_token_ids_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="token id -100: ids count from 0"):
        write(tmp_path / "t", Dataset.from_dict({"input_ids": [[1, 2], [1, -100]]}))


def test_a_context_of_a_bos_alone_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="a context_length of 1 holds a BOS alone"):
        featurize(*setting(prepend_bos=True), texts(), tmp_path / "t", context_length=1)


def test_files_that_are_no_table_are_told(tmp_path: Path):
    pandas.DataFrame({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="is no table of features"):
        FeatureTable(tmp_path / "a.parquet")
    with pytest.raises(OSError, match="is no whole parquet file"):
        FeatureTable(tmp_path / "b.parquet")
    with pytest.raises(FileNotFoundError, match="holds no table"):
        FeatureTable(tmp_path / "c")


def test_the_table_says_what_it_is_of(tmp_path: Path):
    table = table_of(tmp_path / "t.parquet", text={"dataset": "words"})
    assert table.about["text"] == {"dataset": "words"} and table.about["hook_point"] == "transformer.h.1.output"
    told = json.loads(parquet.read_schema(table.path).metadata[b"hfsae"])
    assert told == read_about(table.path) and told["n_features"] == N_FEATURES


def other_vocabulary():
    """The tiny tokenizer with two words that have changed places."""
    told = json.loads(setting().tokenizer.backend_tokenizer.to_str())
    words = told["model"]["vocab"]
    words["w3"], words["w4"] = words["w4"], words["w3"]
    inner = Tokenizer.from_str(json.dumps(told))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<eos>", eos_token="<eos>")


@pytest.mark.parametrize("name", ["t.parquet", "t"])
def test_another_tokenizer_is_no_part_of_a_table_that_is_there(tmp_path: Path, name: str):
    table_of(tmp_path / name)
    sae, model, _ = setting()
    options = {"disable_tqdm": True, "documents_per_shard": 7}
    with pytest.raises(FileExistsError, match="tokenizer_sha256 was"):
        featurize(sae, model, other_vocabulary(), texts(), tmp_path / name, **options)
    # Asking a tokenizer to cut once changes nothing of what it makes of a text here.
    again = copy.deepcopy(setting().tokenizer)
    again(["w1 w2", "w3"], max_length=1, truncation=True)
    assert featurize(sae, model, again, texts(), tmp_path / name, **options) is not None


def test_the_last_token_of_a_document_is_no_bos_that_a_later_piece_begins_with(tmp_path: Path):
    sae, model, tokenizer = setting()
    sae = copy.deepcopy(sae)
    sae.config.prepend_bos, sae.config.exclude_special_tokens, sae.config.exclude_positions = True, False, [1]
    text = " ".join(f"w{i % 9 + 1}" for i in range(12))  # eleven words after a BOS, then one more, which is left out
    table = featurize(sae, model, tokenizer, [text], tmp_path / "t.parquet", reduce="last", disable_tqdm=True)
    assert table is not None
    ids = torch.tensor([[0, *tokenizer(text)["input_ids"][:11]]])
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[2][0, -1]
    np.testing.assert_allclose(table.to_csr().toarray()[0], sae.encode(hidden).detach().numpy(), atol=1e-4)


def test_a_table_without_rows_is_a_dataset_without_rows(tmp_path: Path):
    table = table_of(tmp_path / "t.parquet", ["", "w1"], level="token")  # position 0 is left out
    dataset = table.to_dataset()
    assert len(table) == len(dataset) == 0 and "features" in dataset.column_names
    assert table.to_csr().shape == (0, N_FEATURES)


def test_a_list_that_holds_more_than_texts_is_told(tmp_path: Path):
    with pytest.raises(TypeError, match="document 1 of the list is of type NoneType, expected a text"):
        write(tmp_path / "t.parquet", ["w1 w2", None])
