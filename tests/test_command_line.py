import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

import hfsae.cli
from hfsae.command_line import (
    BOOLEAN,
    NUMBERS,
    Command,
    _spelled_alike,
    option,
    whole_number,
    with_groups,
    with_options,
)


def parse(*words: str) -> dict:
    """What a command with an option of every kind gets of a command line."""
    got: dict = {}

    def command(
        place: Annotated[str | None, typer.Argument()] = None,
        max_tokens: Annotated[int, option("--max_tokens", "How many.", parser=whole_number)] = 5,
        batch_size: Annotated[int, option("--batch_size", "How many.")] = 16,
        numbers: Annotated[list[int] | None, option("--numbers", "Some.", metavar=NUMBERS)] = None,
        text: Annotated[list[str] | None, option("--text", "Some.")] = None,
        write: Annotated[bool | None, option("--write/--no_write", "Whether.")] = None,
        color: Annotated[Literal["red", "blue"], option("--color", "Which.")] = "red",
        *,
        given: dict[str, str],
    ) -> None:
        got.update(locals())

    further = {
        "learning_rate": typer.Option("--learning_rate", metavar="<float>"),
        "streaming": typer.Option("--streaming", metavar=BOOLEAN),
        "model_name_or_path": typer.Option("--model_name_or_path"),
    }
    application = typer.Typer(add_completion=False)
    application.command(cls=Command)(with_options(command, "given", further))
    with pytest.raises(SystemExit) as end:
        get_command(application).main(args=list(words))
    got["status"] = end.value.code
    return got


def test_what_is_not_given_has_its_default_or_is_left_out():
    got = parse()
    assert (got["max_tokens"], got["batch_size"], got["write"], got["color"]) == (5, 16, None, "red")
    assert got["given"] == {} and got["status"] == 0


@pytest.mark.parametrize("name", ["--learning_rate", "--learning-rate", "--learning", "--learning_rate=1e-3"])
def test_a_name_is_spelled_with_hyphens_or_underscores_or_begun(name):
    words = [name] if "=" in name else [name, "1e-3"]
    assert parse(*words)["given"] == {"learning_rate": "1e-3"}


@pytest.mark.parametrize("name", ["--max_tokens", "--max-tokens", "--tokens"])
def test_an_old_name_stays(name):
    assert parse(name, "2e5")["max_tokens"] == 200_000
    assert parse("--model", "gpt2")["given"] == {"model_name_or_path": "gpt2"}


MODEL_NAMES = ["--base_model", "--model_name_or_path", "--model", "--base-model"]


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("command", [name for commands in hfsae.cli.COMMANDS.values() for name in commands])
def test_every_command_that_takes_a_language_model_knows_all_of_its_names(command, name):
    options = get_command(hfsae.cli._application([])).commands[command].params
    declared = {one.opts[0] for one in options} & {"--base_model", "--model_name_or_path"}
    if declared and not (command == "label" and name == "--model"):  # there it is the model that is asked
        assert _spelled_alike([name, "gpt2"], options) == [*declared, "gpt2"]


@pytest.mark.parametrize(
    ("words", "streaming", "place"),
    [
        (["--streaming"], "true", None),
        (["--streaming", "false", "x"], "false", "x"),
        (["--streaming", "x"], "true", "x"),
        (["--streaming=no", "x"], "no", "x"),
        (["x", "--streaming", "--batch-size", "3"], "true", "x"),
    ],
)
def test_a_boolean_is_a_flag_or_a_word_and_takes_no_other(words, streaming, place):
    got = parse(*words)
    assert got["given"] == {"streaming": streaming} and got["place"] == place


def test_numbers_follow_one_another_or_their_option_again():
    assert list(parse("--numbers", "1", "2", "x")["numbers"]) == [1, 2]
    got = parse("--numbers", "1", "--numbers", "2", "x")
    assert list(got["numbers"]) == [1, 2] and got["place"] == "x"


def test_a_value_may_look_like_an_option_or_be_negative():
    assert list(parse("--text", "--streaming", "--text", "a")["text"]) == ["--streaming", "a"]
    assert parse("--learning_rate", "-1")["given"] == {"learning_rate": "-1"}
    assert parse("--", "--streaming")["place"] == "--streaming"


def test_a_switch_goes_both_ways():
    assert (parse("--write")["write"], parse("--no-write")["write"]) == (True, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rte", "3"], "--learning_rate"),
        (["--b", "3", "--zzz"], "--zzz"),
        (["--max_tokens", "2.5"], "2.5"),
        (["--color", "green"], "green"),
        (["--learning_rate"], "learning_rate"),
    ],
)
def test_what_is_none_is_refused_with_what_is_near(capsys, words, message):
    got = parse(*words)
    assert got["status"] == 2 and "batch_size" not in got and message in capsys.readouterr().err


def test_a_beginning_that_two_options_have_is_refused(capsys):
    assert parse("--m", "3")["status"] == 2


@dataclass(frozen=True)
class Text:
    dataset_name: Annotated[str | None, option("--dataset_name", "Which.")] = None
    max_tokens: Annotated[int, option("--max_tokens", "How many.", parser=whole_number)] = 5


@dataclass(frozen=True)
class LongText(Text):
    max_tokens: Annotated[int, option("--max_tokens", "How many.", parser=whole_number)] = 7


@pytest.mark.parametrize("group", [Text, LongText])
def test_a_group_stands_for_its_options_which_a_command_gets_as_one_object(group):
    got = {}

    def command(place: Annotated[str, typer.Argument()], *, text: group, top: int = 3) -> None:
        got.update(locals())

    application = typer.Typer(add_completion=False)
    application.command(cls=Command)(with_groups(command))
    run = get_command(application)
    run.main(["here", "--dataset", "x", "--top", "4"], standalone_mode=False)
    assert (got["place"], got["text"], got["top"]) == ("here", group("x"), 4)
    run.main(["--tokens", "2e1", "there"], standalone_mode=False)
    assert (got["place"], got["text"], got["top"]) == ("there", group(max_tokens=20), 3)
    assert [one.name for one in run.params] == ["place", "dataset_name", "max_tokens", "top"]


def test_a_command_without_groups_stays_as_it_is():
    def command(place: str) -> None: ...

    assert with_groups(command) is command


@pytest.mark.parametrize("text", ["abc", "1.5", "nan", "inf", ""])
def test_what_is_no_whole_number_is_said_in_words(text, capsys):
    assert parse("--max_tokens", text)["status"] == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"{text!r} is no whole number; write it as 200000, 200_000 or 2e5." in told


def test_no_help_has_a_bracket_before_a_letter_which_rich_takes_for_markup_and_leaves_out():
    calls = [
        node
        for file in Path(hfsae.cli.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "option"
    ]
    assert len(calls) > 50
    texts = [one.value for call in calls for one in ast.walk(call) if isinstance(one, ast.Constant)]
    assert [text for text in texts if isinstance(text, str) and re.search(r"\[[a-z]", text)] == []


@pytest.mark.parametrize("command", ["train", "cache", "sweep", "estimate"])
def test_help_says_what_a_command_writes_and_what_may_be_a_list(command):
    commands = get_command(hfsae.cli._application([]))
    assert isinstance(commands, TyperGroup)
    params = commands.commands[command].params
    said = {str(param.name): str(param.help) for param in params if isinstance(param, TyperOption)}
    assert ("trained SAE" in said["output_dir"]) == (command in ("train", "estimate"))  # a cache has no SAE
    for name, in_a_sweep in (("k", True), ("architecture", True), ("seed", True), ("training_tokens", False)):
        assert ("May be a list." in said[name]) == (in_a_sweep and command in ("sweep", "estimate"))
