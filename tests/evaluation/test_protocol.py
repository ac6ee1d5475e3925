"""The digest that ties figures to weights."""

import torch

from hfsae import SAE
from hfsae.evaluation import weights_sha256
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
