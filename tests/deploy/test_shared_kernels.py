import copy
from math import prod

import pytest
import torch

import kerneldna as kd
from kerneldna.deploy.calibrate import gate_means
from kerneldna.deploy.shared_kernels import shared_kernels

NETWORKS = {
    "resnet18": {},
    "mobilenetv2_050": {"eligible": ("pointwise", "depthwise"), "patterns": None},
    "convnext_tiny": {},
}


@pytest.mark.parametrize("mode", ["accuracy", "throughput"])
@pytest.mark.parametrize("name", NETWORKS)
def test_kernel_times_factors_is_the_fused_kernel(name, mode, settle):
    torch.manual_seed(0)
    model = kd.create_model(name, method="kerneldna", num_classes=4, width=0.25, options=NETWORKS[name])
    x = torch.randn(4, 3, 32, 32)
    settle(model, x)
    means = gate_means(model, x, progress=False) if mode == "throughput" else None
    fused = kd.fuse_(copy.deepcopy(model), mode=mode, calibrate=means)
    state = fused.state_dict()
    shared = shared_kernels(model, fused, means)
    families = kd.plan_of(model).families
    assert [len(kernel.users) for kernel in shared] == [1 + len(family.children) for family in families]
    for kernel in shared:
        for weight, factors in kernel.users.items():
            assert all(factor.ndim == kernel.kernel.ndim for factor in factors)
            found = prod(factors, start=kernel.kernel.double())
            torch.testing.assert_close(found.float(), state[weight], rtol=1e-6, atol=1e-7)


def test_a_plain_network_shares_nothing():
    model = kd.create_model("resnet18", num_classes=4, width=0.125).eval()
    assert shared_kernels(model, kd.fuse_(copy.deepcopy(model))) == ()


def test_a_child_whose_factors_are_as_large_as_its_kernel_is_not_shared():
    model = kd.create_model(
        "resnet50",
        method=kd.KernelDNA(eligible="pointwise", modulation="low_rank"),
        num_classes=4,
        width=0.125,
    )
    shared = shared_kernels(model, kd.fuse_(copy.deepcopy(model.eval())))
    assert {len(kernel.users) for kernel in shared} == {1}  # the parent alone
