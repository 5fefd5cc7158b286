"""Fusing writes out the kernels of children: the log, and what describes the network, say so."""

import copy

import kerneldna as kd


def test_kernels_that_are_written_out_are_said(tiny, caplog):
    caplog.set_level("INFO", "kerneldna")
    before = kd.describe(tiny).size.parameters
    described = kd.describe(kd.fuse_(copy.deepcopy(tiny)))
    after = described.size.parameters
    assert after > 1.5 * before
    assert f"shared kernels written out ({before:,} -> {after:,} parameters)" in caplog.text
    assert (described.fused, described.unfused.parameters) == ("accuracy", before)
    assert f"stored once as trained ({before:,} parameters), is written out ({after:,})" in str(described)


def test_a_plain_network_has_none_to_write_out(caplog):
    caplog.set_level("INFO", "kerneldna")
    model = kd.create_model("resnet18", num_classes=4, width=0.125, stem="small").eval()
    assert "BatchNorm is folded into the convolutions" in str(kd.describe(kd.fuse_(model)))
    assert "written out" not in caplog.text
