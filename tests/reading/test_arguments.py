"""What a file may set of timm, and what not: nothing that names a file, an address or a class."""

import inspect

import pytest
import timm
from timm.models import build_model_with_cfg

from kerneldna.reading.arguments import ARGUMENTS, check_arguments


def test_plain_arguments_pass():
    check_arguments(
        {"drop_path_rate": 0.1, "act_layer": "silu", "layers": [2, 2], "in_chans": 1, "aa_layer": None},
        "args",
    )


def test_no_argument_of_timm_s_own_loading_is_among_them():
    own = {
        *inspect.signature(timm.create_model).parameters,
        *inspect.signature(build_model_with_cfg).parameters,
    }
    assert not ARGUMENTS & own


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"pretrained": True}, "args.pretrained: no argument of timm that a file may set"),
        ({"pretrained_cfg": {"url": "x"}}, "args.pretrained_cfg: no argument"),
        ({"checkpoint_path": "x.pt"}, "args.checkpoint_path: no argument"),
        ({"device": "cuda"}, "args.device: no argument"),
        (
            {"act_layer": "torch.nn:SiLU"},
            "args.act_layer: expected a number up to 65,536, true, false, null, a layer's name",
        ),
        ({"act_layer": "../x"}, "given '../x'"),
        ({"act_layer": dict}, "given <class 'dict'>"),
        ({"layers": {"a": 1}}, "given {'a': 1}"),
        ({"layers": [2, [2, "/"]]}, r"args.layers\[1\]\[1\]: expected"),
        ({"layers": [2] * 65}, "given a list of 65 values"),
        ({"depths": [1000, 100]}, "args.depths: expected 1,024 blocks at most, given"),
        ({"in_chans": 10**6}, "args.in_chans: expected a number up to 65,536"),
        ({"drop_rate": float("nan")}, "args.drop_rate: expected a number up to 65,536"),
    ],
)
def test_what_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        check_arguments(args, "args")
