import pytest

from hfsae.arguments.command_options import parse_training_arguments
from hfsae.arguments.config_file import read_config


@pytest.fixture
def config(tmp_path):
    """Writes a YAML file and gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_file_gives_arguments_in_their_types(config):
    args = parse_training_arguments(
        [
            config(
                """
                architecture: jumprelu
                n_features: 512
                training_tokens: 1_000_000
                expansion_factor: 8
                exclude_positions: [0, 1]
                architecture_options: {bandwidth: 0.1}
                streaming: true
                """
            )
        ]
    )
    assert (args.architecture, args.n_features, args.training_tokens) == ("jumprelu", 512, 1_000_000)
    assert type(args.expansion_factor) is float and args.expansion_factor == 8
    assert args.exclude_positions == [0, 1] and args.architecture_options == {"bandwidth": 0.1}
    assert args.streaming is True


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(config):
    path = config("k: 8\nseed: 3\n")
    args = parse_training_arguments([path, "--k", "16"], k=1, seed=1, logging_steps=7)
    assert (args.k, args.seed, args.logging_steps) == (16, 3, 7)


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3"])
def test_a_number_may_be_written_as_people_write_it(config, text):
    assert read_config(config(f"learning_rate: {text}")) == {"learning_rate": 1e-3}
    assert parse_training_arguments(["--learning_rate", text]).learning_rate == 1e-3


def test_a_whole_number_may_be_written_with_an_exponent(config):
    assert read_config(config("training_tokens: 1e9")) == {"training_tokens": 10**9}
    assert parse_training_arguments(["--training_tokens", "1e9"]).training_tokens == 10**9


def test_a_word_stands_where_it_is_allowed(config):
    assert read_config(config("learning_rate: auto")) == {"learning_rate": "auto"}
    with pytest.raises(ValueError, match="learning_rate: expected float or one of 'auto', got 'fast'"):
        read_config(config("learning_rate: fast"))


@pytest.mark.parametrize(
    ("written", "value"),
    [(["--streaming"], True), (["--streaming", "true"], True), (["--streaming", "false"], False), ([], True)],
)
def test_a_boolean_is_a_flag_or_a_word(config, written, value):
    assert parse_training_arguments([config("streaming: true"), *written]).streaming is value


def test_a_flag_can_stand_before_another_option():
    args = parse_training_arguments(["--bf16", "--k", "4"])
    assert args.bf16 is True and args.k == 4


@pytest.mark.parametrize("name", ["shuffle_window_tokens", "model_revision", "prepend_bos", "target_l0"])
def test_null_takes_back_what_the_file_says(config, name):
    value = {"shuffle_window_tokens": 10, "model_revision": "main", "prepend_bos": True, "target_l0": 4.0}[name]
    path = config(f"{name}: {value}")
    assert getattr(parse_training_arguments([path]), name) == value
    assert getattr(parse_training_arguments([path, f"--{name}", "null"]), name) is None
    assert read_config(config(f"{name}: null")) == {name: None}


def test_a_name_that_looks_like_a_number_stays_a_name(config):
    assert parse_training_arguments(["--model_revision", "123"]).model_revision == "123"


def test_an_unknown_name_is_refused_with_the_nearest(config):
    with pytest.raises(
        ValueError, match=r"config\.yaml: unknown argument 'learning_rte'. Did you mean 'learning_rate'"
    ):
        read_config(config("learning_rte: 1.0"))


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_training_arguments(["--learning_rte", "1"])
    assert "--learning_rte" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("k: many", "k: expected int, got 'many'"),
        ("k: 1.5", "k: expected int, got 1.5"),
        ("k: true", "k: expected int, got True"),
        ("k: null", "k: expected int, got None"),
        ("bf16: maybe", "bf16: expected bool, got 'maybe'"),
        ("n_features: [1]", r"n_features: expected int or null, got \[1\]"),
        ("exclude_positions: 0", r"exclude_positions: expected list\[int\], got 0"),
        ("exclude_positions: [a]", r"exclude_positions: expected list\[int\], got \['a'\]"),
        ("activation_dtype: int8", "activation_dtype: expected one of 'bfloat16', 'float32', got 'int8'"),
        ("output_dir: 3", "output_dir: expected str, got 3"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_place(config, line, message):
    with pytest.raises(ValueError, match=rf"config\.yaml: {message}"):
        read_config(config(line))


def test_the_command_line_is_named_where_it_is_wrong():
    with pytest.raises(ValueError, match="--k: expected int, got 'many'"):
        parse_training_arguments(["--k", "many"])


def test_what_is_not_yaml_is_refused(config):
    with pytest.raises(ValueError, match=r"config\.yaml: this is not YAML"):
        read_config(config("k: [1"))
    with pytest.raises(ValueError, match="--exclude_positions: this is not YAML"):
        parse_training_arguments(["--exclude_positions", "[1"])


def test_a_file_must_hold_names_with_values(config):
    assert read_config(config("# nothing yet\n")) == {}
    with pytest.raises(ValueError, match="must hold `name: value` lines, got a list"):
        read_config(config("- k"))
    with pytest.raises(FileNotFoundError, match=r"no config file nowhere\.yaml"):
        read_config("nowhere.yaml")
