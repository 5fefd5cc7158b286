"""torch.fx, and torchvision's feature extraction on it, take each of our layers as one node."""

import pytest
import torch
from torch.fx import symbolic_trace
from torchvision.models.feature_extraction import create_feature_extractor

import kerneldna as kd

X = torch.randn(3, 3, 32, 32)
OPTIONS = [(method, {}) for method in kd.list_methods()]
OPTIONS += [("kerneldna", {"gate": "stage"}), ("kerneldna", {"gate_drop_rate": 0.2})]


def network(method="kerneldna", **options):
    small = {"num_classes": 4, "width": 0.125, "stem": "small"}
    return kd.create_model("resnet18", method=method, options=options, **small)


@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=str)
def test_a_graph_computes_and_trains_what_the_network_does(method, options):
    model = network(method, **options).eval()
    graph = symbolic_trace(model)
    with torch.no_grad():
        assert torch.equal(graph(X), model(X))
    assert dict(graph.named_parameters()).keys() == dict(model.named_parameters()).keys()
    graph(X).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_linears_on_maps_are_nodes_too():
    method = kd.KernelDNA(eligible="pointwise")
    small = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}
    model = kd.create_model("convnext_tiny", method=method, num_classes=4, **small).eval()
    kinds = {type(model.get_submodule(str(node.target))) for node in symbolic_trace(model).graph.nodes
             if node.op == "call_module"}  # fmt: skip
    assert kd.ChildLinear in kinds
    with torch.no_grad():
        assert torch.equal(symbolic_trace(model)(X), model(X))


def test_features_as_torchvision_extracts_them():
    model = network().eval()
    maps = create_feature_extractor(model, {"layer3": "third", "layer4.0": "within"})(X)
    expected = model.layer3(model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(X)))))))
    assert torch.equal(maps["third"], expected)
    assert torch.equal(maps["within"], model.layer4[0](expected))
