"""Which SAE a file is of: the digest of weights, and settings."""

import json

import torch

from hfsae import SAE
from hfsae.identity import Identity, weights_sha256
from tests.evaluation.tiny import make_sae


def test_the_digest_survives_saving_and_moving_and_is_that_of_the_stored_tensors(tmp_path):
    sae = make_sae()
    digest = weights_sha256(sae)
    sae.save_pretrained(tmp_path)
    assert weights_sha256(SAE.from_pretrained(tmp_path)) == digest == weights_sha256(make_sae())
    assert len(digest) == 64 and int(digest, 16)


def test_any_change_of_a_tensor_its_precision_or_shape_changes_the_digest():
    digests = [weights_sha256(make_sae())]
    for name in make_sae().state_dict():
        sae = make_sae()
        value = sae.state_dict()[name].flatten()
        value[-1] = torch.nextafter(value[-1], torch.tensor(9.0))
        digests.append(weights_sha256(sae))
    digests.append(weights_sha256(make_sae().to(torch.bfloat16)))
    transposed = make_sae()
    transposed.W_dec = torch.nn.Parameter(transposed.W_dec.reshape(16, 40))
    digests.append(weights_sha256(transposed))
    assert len(set(digests)) == len(digests)


def test_the_config_is_not_part_of_it():
    assert weights_sha256(make_sae(base_model="org/a")) == weights_sha256(make_sae(base_model="org/b"))


def test_what_is_kept_is_of_the_weights_and_settings_that_it_names():
    sae = make_sae()
    kept = json.loads(json.dumps(Identity.of(sae).record()))
    assert Identity.of(sae).unlike(kept) is None and kept["settings"]["k"] == 4
    assert Identity.of(make_sae(base_model="org/renamed")).unlike(kept) is None
    for fields, told in (
        ({"k": 2}, "k was 4 and is 2"),
        ({"hook_point": "transformer.h.0.output"}, "hook_point was 'transformer.h.1.output' and is "),
        ({"exclude_positions": []}, "exclude_positions was [0] and is []"),
    ):
        other = Identity.of(make_sae(**fields)).unlike(kept)
        assert other is not None and other.startswith(f"other settings than these ({told}")
        assert Identity.of(make_sae(**fields)).unlike({"weights_sha256": kept["weights_sha256"]}) is None
    other = Identity.of(make_sae().to(torch.bfloat16)).unlike(kept)
    assert other is not None and other.startswith(f"other weights (SHA-256 {kept['weights_sha256'][:12]}) than these")
    assert Identity.of(sae).unlike({}) is not None
    assert Identity("abc").record() == {"weights_sha256": "abc"}
