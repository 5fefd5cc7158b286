"""Does compression work on networks at large? Forty of timm, to 0.7 of their parameters, through every step to a file.

python experiments/compress_sweep.py                # all that have no result yet, each in a process of its own
python experiments/compress_sweep.py resnet18       # one, here
python experiments/compress_sweep.py --others       # networks of other libraries
python experiments/compress_sweep.py resnet50 --side 224 --images 256 --budget 0.5 --results other   # time and memory at full size

Untrained networks and random images: this says nothing about accuracy. Each leaves a JSON in its folder of results:
parameters and multiply-accumulates before and after, seconds, peak memory, and the largest relative difference that loading, fusing
and the ONNX file make. --table prints them as Markdown.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from other_libraries import NETWORKS as OTHERS
from other_libraries import SIDES as FIXED
from torch import nn

import kerneldna as kd
from kerneldna.files import write_json
from kerneldna.network.outputs import relative_difference, tensors_in

NETWORKS = [
    "resnet18",
    "resnet26",
    "resnet50",
    "resnetv2_50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "seresnet50",
    "legacy_seresnet18",
    "res2net50_26w_4s",
    "resnest14d",
    "skresnet18",
    "ecaresnet26t",
    "mobilenetv2_050",
    "mobilenetv2_100",
    "mobilenetv3_small_050",
    "mobilenetv3_large_075",
    "mobilenetv4_conv_small",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
    "mnasnet_050",
    "semnasnet_075",
    "fbnetc_100",
    "spnasnet_100",
    "hardcorenas_a",
    "tinynet_e",
    "lcnet_050",
    "ghostnet_050",
    "regnetx_002",
    "regnety_002",
    "densenet121",
    "vgg11_bn",
    "vgg13",
    "convnext_atto",
    "convnextv2_atto",
    "cspresnet50",
    "cspdarknet53",
    "hrnet_w18_small",
    "dla34",
    "xception41",
    "inception_v3",
    "repvgg_a0",
    "mobileone_s0",
    "rexnet_100",
    "ese_vovnet19b_dw",
    "selecsls42",
    "edgenext_xx_small",
]
SIDES = FIXED | {"inception_v3": 107}  # the smallest that it takes, and a little; 64 for all others


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.json"


def created(name: str) -> nn.Module:
    """Build a network, untrained: of timm, or of another library."""
    return OTHERS[name].create() if name in OTHERS else kd.create_model(name, num_classes=10)


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Compress one network and take it through every step."""
    torch.manual_seed(0)
    side = given.side or SIDES.get(name, 64)
    size = (OTHERS[name].channels if name in OTHERS else 3, side, side)
    network = created(name).eval()
    images = torch.randn(given.images, *size)
    with torch.no_grad():  # norms that know what they see, as those of a trained network do
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
                module.train()
        network(images[:32])
    network.eval()
    before = kd.describe(network, input_size=size).size
    start, spent = time.perf_counter(), time.process_time()
    small = kd.compress(network, images, budget=given.budget, progress=False)
    found: dict[str, Any] = {
        "network": name,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - spent, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    after = kd.describe(small, input_size=size).size
    found |= {"parameters": [before.parameters, after.parameters], "macs": [before.macs, after.macs]}
    x = images[:2]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        shapes = [each.shape for each in tensors_in(network(x))]
        expected = tensors_in(small(x))
        found["shape"] = [each.shape for each in expected] == shapes
        kept, own = kd.save(small, Path(folder) / "small"), created(name) if name in OTHERS else None
        loaded = kd.load(kept, model=own).eval()
        found["load"] = relative_difference(expected, tensors_in(loaded(x)))
        exported = kd.export(small, Path(folder) / "small.onnx", batch=2, input_size=size, images=images)
        found["onnx"], found["onnx_bytes"] = exported.difference, exported.bytes
        found["fuse"] = relative_difference(expected, tensors_in(kd.fuse_(loaded, probe=x)(x)))
    return found


def table(folder: Path) -> str:
    """Return the results as Markdown, a row a network."""
    lines = [
        "| | parameters | kept | MACs | seconds | load | fuse | ONNX |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if "fault" in found:
            lines.append(f"| `{found['network']}` | {found['fault']} |||||||")
            continue
        (before, after), macs = found["parameters"], found["macs"]
        shares = f"{after / before:.3f} | {macs[1] / macs[0]:.3f}"
        steps = " | ".join(f"{found[step]:.0e}" for step in ("load", "fuse", "onnx"))
        lines.append(
            f"| `{found['network']}` | {before / 1e6:.2f} M | {shares} | {found['seconds']:.0f} | {steps} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="networks to measure here; by default all, each in a process of its own"
    )
    parser.add_argument(
        "--results", type=Path, help="folder; by default compress_sweep, or compress_sweep_others"
    )
    parser.add_argument(
        "--side", type=int, help="pixels of an image; by default 64, or the least that a network takes"
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--budget", type=float, default=0.7)
    parser.add_argument("--seconds", type=int, default=900, help="that one network may take")
    parser.add_argument(
        "--others", action="store_true", help="networks of other libraries, in place of timm's"
    )
    parser.add_argument("--table", action="store_true", help="print the results")
    given = parser.parse_args()
    if given.results is None:
        given.results = Path("experiments/results", f"compress_sweep{'_others' * given.others}")
    if given.table:
        print(table(given.results))
        return
    for name in given.names:
        write_json(_file(given.results, name), measured(name, given))
    for name in () if given.names else OTHERS if given.others else NETWORKS:
        file = _file(given.results, name)
        if file.exists():
            continue
        command = [sys.executable, __file__, name, "--results", str(given.results)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=given.seconds, check=False)
            fault = done.stderr.strip().splitlines()[-1] if done.returncode else ""
        except subprocess.TimeoutExpired:
            fault = f"it took more than {given.seconds} s"
        if fault:
            write_json(file, {"network": name, "fault": fault})
        print(json.dumps(json.loads(file.read_text())), flush=True)


if __name__ == "__main__":
    main()
