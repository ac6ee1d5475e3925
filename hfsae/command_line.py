"""The dialect of every command line here: options are called as arguments in Python and YAML, by typer.

`--learning_rate` and `--learning-rate` are one option. Old names stay, and the beginning of a name is enough where no
other option begins so.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

OLD_NAMES = {
    "commit_message": ("message",),
    "dataset_name": ("dataset",),
    "dataset_split": ("split",),
    "json_file": ("json",),
    "max_tokens": ("tokens",),
    "model_name_or_path": ("model",),
}
"""Options by their names, and what they were called once, or are called for short where it is clear what is meant."""

ALSO_CALLED = {"base_model": ("model_name_or_path", "model"), "model_name_or_path": ("base_model",)}
"""What the language model of an SAE is called in other commands: each takes all of these names."""

BOOLEAN = "<bool>"
CHECKPOINT = "last|FOLDER"
NUMBERS = "NUMBERS"
_BARE = {BOOLEAN: "true", CHECKPOINT: "last"}
"""What an option means that is given without a value, by the kind of value that it takes."""

_WORDS = {"true", "false", "yes", "no", "on", "off", "null"}


class Command(TyperCommand):
    """A command whose options may be spelled in every way that the dialect has."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses, after every option was given the name that it is declared by."""
        return super().parse_args(ctx, _spelled_alike(args, self.params))


def option(name: str, help: str, **more: Any) -> Any:
    """An option under exactly this name: `Annotated[int, option("--max_tokens", "tokens to read")]`.

    Args:
        name: With its hyphens, and for a switch with what switches it off: `"--write/--no_write"`.
        help: What it does.
        **more: For `typer.Option`.
    """
    return typer.Option(name, help=help, **more)


def with_options(command: Callable[..., Any], given_as: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """A command that takes further options, whose texts it gets as one dictionary.

    Args:
        command: The function of the command.
        given_as: Its keyword for the dictionary of the options that were given.
        options: What `typer.Option` made of each, by name.
    """
    own = [one for one in inspect.signature(command).parameters.values() if one.name != given_as]
    kind = inspect.Parameter.KEYWORD_ONLY
    further = [
        inspect.Parameter(name, kind, default=None, annotation=Annotated[str | None, one])
        for name, one in options.items()
    ]

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        texts = {name: values.pop(name) for name in options}
        return command(**values, **{given_as: {name: text for name, text in texts.items() if text is not None}})

    return with_signature(run, [*own, *further])


def with_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose groups of options are given one by one: `text: Text` stands for the fields of `Text`.

    Args:
        command: The function of the command. A parameter that is annotated by a dataclass is a group. Each field of
            that class is an option, `Annotated[int, option(...)] = 16`, and the command gets an object of the class.
    """
    taken = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in taken if is_dataclass(one.annotation)}
    parameters = []
    for one in taken:
        parameters += _options_of(groups[one.name]) if one.name in groups else [one]

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        return command(**values)

    return with_signature(run, parameters) if groups else command


def _options_of(group: Any) -> list[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(one.name, kind, default=one.default, annotation=one.type) for one in fields(group)]


def with_signature(run: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """A function that wraps another one, with these parameters, all by keyword, as typer will read them."""
    del run.__wrapped__  # typer would read the signature of what is wrapped
    by_keyword = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = inspect.Signature(by_keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def whole_number(text: str) -> int:
    """A number of tokens as people write it: `200000`, `200_000` or `2e5`.

    Raises:
        typer.BadParameter: If it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not number.is_integer():
        raise typer.BadParameter(f"{text!r} is no whole number; write it as 200000, 200_000 or 2e5.")
    return int(number)


def _spelled_alike(args: Sequence[str], params: Sequence[Any]) -> list[str]:
    """A command line in which every option has the name that it is declared by, and a value if it takes one."""
    declared = {
        _key(name): (name, param)
        for param in params
        for name in (*param.opts, *param.secondary_opts)
        if name.startswith("--")
    }
    rest, spelled = list(args), []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*spelled, word, *rest]
        given, equals, value = word.partition("=")
        name, param = _declared(given, declared) if word.startswith("--") else ("", None)
        if param is None:
            spelled.append(word)
        elif equals:
            spelled += [name, value]
        elif param.is_flag:
            spelled.append(name)
        elif param.metavar in _BARE and not _is_value(rest, param.metavar):
            spelled += [name, _BARE[param.metavar]]
        else:
            spelled += [name, *rest[:1]]
            del rest[:1]
            while param.multiple and param.metavar == NUMBERS and rest and rest[0].isdigit():
                spelled += [name, rest.pop(0)]
    return spelled


def _key(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _declared(given: str, declared: Mapping[str, tuple[str, Any]]) -> tuple[str, Any]:
    """The option that is meant: by its name, by an old one, or by a beginning that no other option has."""
    key = _key(given)
    if key in declared:
        return declared[key]
    for name, others in (*OLD_NAMES.items(), *ALSO_CALLED.items()):
        if key in others and name in declared:
            return declared[name]
    begun = [name for name in declared if key and name.startswith(key)]
    return declared[begun[0]] if len(begun) == 1 else ("", None)


def _is_value(rest: Sequence[str], kind: str) -> bool:
    """Whether the next word is the value of an option that may go without."""
    if not rest or rest[0].startswith("--"):
        return False
    return kind != BOOLEAN or rest[0].lower() in _WORDS
