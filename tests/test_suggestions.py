import copy
import inspect
import pickle

import pytest

from hfsae import SAE, SAETrainingArguments, TopKSAEConfig
from hfsae.architectures import config_class_of
from hfsae.suggestions import did_you_mean, refuse_misspelled


def test_a_near_name_is_suggested_and_a_far_one_is_not():
    assert did_you_mean("hok_point", ["hook_point", "k"]) == " Did you mean 'hook_point'?"
    assert did_you_mean("colour", ["hook_point", "k"]) == ""


def test_an_unknown_name_that_resembles_nothing_passes():
    refuse_misspelled(["brand_new", "revision"], ["revision"], "f")
    with pytest.raises(TypeError, match="f has no argument 'revison'. Did you mean 'revision'?"):
        refuse_misspelled(["revison"], ["revision"], "f")


def test_training_arguments_name_the_one_that_was_meant_and_keep_their_signature():
    with pytest.raises(TypeError, match="no argument 'learning_rat'. Did you mean 'learning_rate'"):
        SAETrainingArguments(learning_rat=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no argument 'zzz'.$"):
        SAETrainingArguments(zzz=3)  # type: ignore[call-arg]
    assert "learning_rate" in inspect.signature(SAETrainingArguments).parameters
    args = SAETrainingArguments(k=7)
    assert copy.deepcopy(args) == pickle.loads(pickle.dumps(args)) == args


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"revison": "main"}, "revision"),
        ({"hook_pont": "resid_post.1"}, "hook_point"),
        ({"device_mapp": 0}, "device_map"),
    ],
)
def test_loading_names_the_argument_that_was_meant_before_it_looks_for_anything(given, meant):
    with pytest.raises(TypeError, match=f"SAE.from_pretrained has no argument .* Did you mean '{meant}'"):
        SAE.from_pretrained("nobody/nothing", **given)


def test_a_saved_sae_keeps_its_size(tmp_path):
    SAE.from_config(TopKSAEConfig(d_in=4, n_features=8, k=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expansion_factor cannot be overridden"):
        SAE.from_pretrained(tmp_path, expansion_factor=4)


def test_architectures_and_arguments_of_language_models_are_suggested():
    with pytest.raises(ValueError, match="unknown architecture 'topkk'.* Did you mean 'topk'"):
        config_class_of("topkk")
    with pytest.raises(ValueError, match="'quantisation_config'. Did you mean 'quantization_config'"):
        SAETrainingArguments(model_kwargs={"quantisation_config": {}})
