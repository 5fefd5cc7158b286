"""The way that layers of a shared basis run, asked of commands by --prefer."""

from __future__ import annotations

import pytest

pytest.importorskip("typer", reason="needs kerneldna[train]")

import kerneldna as kd
from command_line import call, last_line


def test_commands_take_the_way_and_name_both_numbers(tmp_path):
    model = kd.create_model(
        "resnet18", method="sharedbasis", options={"share": 0.2}, num_classes=4, width=0.125, stem="small"
    )
    kd.save(model.eval(), tmp_path / "model")

    def run(*words):
        return last_line(call(*words))

    inspected = run("inspect", tmp_path / "model")
    assert inspected["macs"] < inspected["macs_one_conv"] == inspected["before"]["macs"]
    fused = run(
        "fuse", tmp_path / "model", "--prefer", "one_conv", "--no-evaluate", "--out", tmp_path / "fused"
    )
    assert fused["prefer"] == "one_conv"
    assert run("inspect", tmp_path / "fused")["macs"] == inspected["before"]["macs"]
    refused = " ".join(call("export", tmp_path / "fused", "--prefer", "macs", code=1).output.split())
    assert "--prefer macs was asked for, and this network is fused already, with --prefer one_conv" in refused
    assert "leave --prefer out" in refused
    unknown = call("fuse", tmp_path / "model", "--prefer", "mac", "--no-evaluate", code=1).output
    assert "unknown way to run (--prefer) 'mac'; did you mean 'macs'" in " ".join(unknown.split())
