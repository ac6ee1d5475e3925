from hfsae.differences import differences


def test_differences_of_records_are_told_by_their_paths_also_of_what_one_alone_has():
    before = {"seed": 0, "made_from": {"text": "a", "split": {"name": "train"}}, "old": 1, "same": [1]}
    now = {"seed": 1, "made_from": {"text": "a", "split": {"name": "test"}}, "same": [1], "later": None, "new": "x"}
    assert differences(before, now) == [
        "seed was 0 and is 1",
        "made_from.split.name was 'train' and is 'test'",
        "old was 1 and is None",
        "new was None and is 'x'",
    ]
    assert differences(before, now, ["old", "same"]) == ["old was 1 and is None"] and differences(now, now) == []
