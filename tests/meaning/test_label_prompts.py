import pytest

from hfsae.meaning import Prompts


def test_a_file_takes_the_place_of_the_packages(tmp_path):
    (tmp_path / "detection.jinja").write_text(
        "{% block system %}{% endblock %}{% block user %}{{ explanation }}?{% for e in examples %} {{ e }}{% endfor %}"
        "{% endblock %}"
    )
    own, given = Prompts.load(), Prompts.load(tmp_path)
    asked = given.render("detection", explanation="x", examples=["a", "{{ b }}"])
    assert asked == [{"role": "user", "content": "x? a {{ b }}"}]
    assert given.sources["explain"] == own.sources["explain"] and given.digest != own.digest
    assert Prompts.load().digest == own.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{% block system %}", "is no template"),
        ("{% block system %}{% endblock %}", "has no block 'user'"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, content, message):
    (tmp_path / "explain.jinja").write_text(content)
    with pytest.raises(ValueError, match=message):
        Prompts.load(tmp_path)


def test_what_a_template_asks_for_and_does_not_get_is_named(tmp_path):
    both = "{% block system %}{% endblock %}{% block user %}{{ wanted }}{% endblock %}"
    (tmp_path / "fuzzing.jinja").write_text(both)
    with pytest.raises(ValueError, match="fuzzing.jinja cannot be filled in: 'wanted' is undefined"):
        Prompts.load(tmp_path).render("fuzzing", explanation="x", examples=[])
    (tmp_path / "fuzzing.jinja").write_text(both.replace("wanted", "''.__class__.__mro__"))
    with pytest.raises(ValueError, match="cannot be filled in"):  # a template prints, and does nothing else
        Prompts.load(tmp_path).render("fuzzing", explanation="x", examples=[])


def test_a_folder_without_prompts_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected one or more of explain.jinja"):
        Prompts.load(tmp_path)
