"""The end of a page's server: torch may be at work before a question has its turn, in it, and after it."""

from threading import Event, Thread

import pytest

from hfsae.serving.questions import BusyError, Questions
from tests.serving.test_playground import playground


def finishing(questions: Questions) -> tuple[Thread, Event]:
    """A thread that waits for the end, and what it sets then."""
    ended = Event()
    thread = Thread(target=lambda: (questions.finish(), ended.set()))
    thread.start()
    return thread, ended


@pytest.mark.parametrize("at_the_model", [False, True])
def test_the_end_waits_for_a_question_before_its_turn_and_in_it(at_the_model):
    questions = Questions(seconds=10)
    with questions.asked():
        if at_the_model:
            with questions.turn():
                thread, ended = finishing(questions)
                assert not ended.wait(0.2)
        else:
            thread, ended = finishing(questions)
        assert not ended.wait(0.2)
    assert ended.wait(10)
    thread.join(10)


def test_the_question_at_the_model_is_the_last_that_has_a_turn():
    questions, waits, told = Questions(seconds=10), Event(), []

    def behind():
        try:
            with questions.asked():
                waits.set()
                with questions.turn():
                    told.append("had a turn")
        except BusyError as error:
            told.append(str(error))

    with questions.asked(), questions.turn():
        other = Thread(target=behind)
        other.start()
        assert waits.wait(10)
        thread, ended = finishing(questions)
        assert not ended.wait(0.2)
    assert ended.wait(10)
    for one in (other, thread):
        one.join(10)
    assert told == ["the server ends: start it again."]
    with pytest.raises(BusyError, match="the server ends"), questions.asked():
        pass


def test_a_question_that_fails_keeps_no_end_waiting():
    asked = playground()
    with pytest.raises(ValueError, match="the text is empty"):
        asked.read("")
    asked.finish()
    for question in (lambda: asked.read("w1 w2"), lambda: asked.generate("w1", {}, 1), lambda: asked.trace("w1 w2")):
        with pytest.raises(BusyError, match="the server ends"):
            question()
