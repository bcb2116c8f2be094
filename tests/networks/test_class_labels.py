"""Class labels of any number of classes: the embedding is looked up, and what it costs does not depend on their number."""

from __future__ import annotations

import pytest
import reference
import torch
from small_networks import stylegan2_discriminator, stylegan2_generator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stylegan_dist.families.r3gan import networks as r3gan
from stylegan_dist.families.r3gan.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import columns_of

MANY = 50_000
NARROW = {"channel_base": 64, "channel_max": 8}


def pair(family: str, classes: int) -> tuple[nn.Module, nn.Module]:
    """Narrow networks of 8 pixels with drawn parameters."""
    if family == "stylegan2":
        g = stylegan2_generator(8, 3, classes, z_dim=8, w_dim=8, mapping_layers=2, **NARROW)
        d = stylegan2_discriminator(8, 3, classes, mbstd_group=2, mapping_layers=1, **NARROW)
    else:
        g = r3gan.Generator(SampleShape(8, 3, classes), GeneratorConfig(**NARROW, group_width=4, z_dim=8, class_dim=8))
        d = r3gan.Discriminator(SampleShape(8, 3, classes), DiscriminatorConfig(**NARROW, group_width=4, blocks=2))
    return reference.randomize(g, 0), reference.randomize(d, 1)


def test_columns_are_the_product_with_one_hot_vectors():
    weight, labels = reference.normals(0, 7, 11).float().requires_grad_(True), torch.tensor([3, 10, 0, 3, 3])
    one_hot = nn.functional.one_hot(labels, 11).float()
    assert torch.equal(columns_of(weight, labels), one_hot @ weight.t()), "to the last bit"
    probe = reference.normals(1, 5, 7)
    wide = weight.detach().double().requires_grad_(True)
    (columns_of(wide, labels) * probe).sum().backward()
    assert torch.allclose(wide.grad, probe.t() @ one_hot.double(), rtol=1e-14, atol=0)
    assert torch.autograd.gradgradcheck(lambda w: columns_of(w, labels).square(), wide.detach().requires_grad_(True))
    with pytest.raises(IndexError):
        columns_of(weight, torch.tensor([11]))


class _Largest(TorchDispatchMode):
    """The most numbers of any result that is no view of an argument."""

    most = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        known = {one.untyped_storage().data_ptr() for one in tree_leaves(arguments) if isinstance(one, Tensor)}
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in known:
                self.most = max(self.most, one.numel())
        return result


@pytest.mark.parametrize("family", ["stylegan2", "r3gan"])
def test_no_activation_grows_with_the_number_of_classes(family):
    g, d = pair(family, MANY)
    labels, z = torch.tensor([0, MANY - 1, 5, 5]), reference.normals(2, 4, 8).float()
    with _Largest() as of, torch.no_grad():
        images = g(z, labels)
        logits = d(images, labels)
    assert of.most < MANY, "one-hot vectors, or a scaled copy of the embedding, would be larger"
    other = d(images, torch.tensor([1, MANY - 1, 6, 5]))
    assert torch.equal(logits[[1, 3]], other[[1, 3]])
    assert not torch.equal(logits[[0, 2]], other[[0, 2]])


@pytest.mark.parametrize("family", ["stylegan2", "r3gan"])
def test_features_are_what_the_last_layer_sees_of_an_image_alone(family):
    d = pair(family, 0)[1].double()
    images = reference.normals(3, 6, 3, 8, 8)
    features = d.features(images)
    assert features.shape == (6, 8)
    assert reference.difference(features, torch.cat([d.features(one[None]) for one in images])) < 1e-10
    if family == "r3gan":
        assert torch.equal(d.dense(features)[:, 0], d(images))
    else:
        d.mbstd_group = 1
        assert torch.equal(d.out(features)[:, 0], d(images))
