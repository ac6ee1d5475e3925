import pytest
from transformers import BitsAndBytesConfig

from hfsae.model_kwargs import checked, recorded


def test_objects_become_plain_values():
    given = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "attn_implementation": "eager"}
    values = checked(given)
    assert values["quantization_config"]["quant_method"] == "bitsandbytes" and values["attn_implementation"] == "eager"


def test_what_belongs_to_this_machine_is_not_recorded():
    given = {"gguf_file": "a.gguf", "cache_dir": "cache", "trust_remote_code": True, "max_memory": {"cpu": "1GB"}}
    assert checked(given) == given and recorded(given) == {"gguf_file": "a.gguf"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "float32"}, "give dtype as model_dtype"),
        ({"revision": "main"}, "give revision as model_revision"),
        ({"load_in_8bit": True}, 'as "quantization_config": {"load_in_8bit": true}'),
        ({"rope_theta": 1.0}, "'rope_theta' is none of attn_implementation, cache_dir"),
        ({"token": "hf_x"}, "a token belongs in `hf auth login`"),
        ({"attn_implementation": object}, "expected plain values, as JSON holds them"),
    ],
)
def test_anything_else_is_refused(given, message):
    with pytest.raises(ValueError, match="model_kwargs: ") as error:
        checked(given)
    assert message in str(error.value)
