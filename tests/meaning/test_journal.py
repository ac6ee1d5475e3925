from hfsae.meaning.journal import Journal

ASKED = [[{"role": "user", "content": f"number {i}"}] for i in range(6)]


class Breaking:
    """Answers a few times, then breaks off."""

    name, at_once = "m", 2

    def __init__(self, patience: int = 100):
        self.patience, self.asked = patience, []

    def answers(self, conversations, max_new_tokens):
        for i, conversation in reversed(list(enumerate(conversations))):
            if len(self.asked) == self.patience:
                raise OSError("down")
            self.asked.append(conversation[0]["content"])
            yield i, conversation[0]["content"].upper() + "\n"

    def tokens_of(self, conversation):
        return 3


def interrupted(path, patience=4):
    journal = Journal(Breaking(patience), path)
    found = {}
    try:
        found.update(journal.answers(ASKED, 5))
    except OSError:
        journal.close()


def test_a_run_that_broke_off_asks_only_for_the_rest(tmp_path):
    interrupted(tmp_path / "answers.jsonl")
    chat = Breaking()
    again = Journal(chat, tmp_path / "answers.jsonl")
    assert dict(again.answers(ASKED, 5)) == {i: f"NUMBER {i}\n" for i in range(6)}
    assert sorted(chat.asked) == ["number 0", "number 1"] and again.asked == 2
    again.finish()
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_line_that_was_cut_off_is_asked_for_again_and_spoils_no_other(tmp_path):
    path = tmp_path / "answers.jsonl"
    interrupted(path)
    path.write_bytes(path.read_bytes()[:-5])
    for expected in (3, 0):
        chat = Breaking()
        journal = Journal(chat, path)
        assert dict(journal.answers(ASKED, 5)) == {i: f"NUMBER {i}\n" for i in range(6)}
        journal.close()
        assert len(chat.asked) == expected


def test_other_questions_and_other_models_are_asked(tmp_path):
    interrupted(tmp_path / "answers.jsonl")
    chat = Breaking()
    dict(Journal(chat, tmp_path / "answers.jsonl").answers(ASKED, 6))
    other = Breaking()
    other.name = "n"
    dict(Journal(other, tmp_path / "answers.jsonl").answers(ASKED, 5))
    assert len(chat.asked) == len(other.asked) == 6
