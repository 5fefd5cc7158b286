"""What a file may pass to timm: a fixed list of arguments, each a plain value.

None of them names a file, an address or a class, so that a network described by a file is built from that description alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kerneldna.reading.shown import shown, under

ARGUMENTS = frozenset(
    """
    in_chans img_size global_pool output_stride features_only out_indices memory_efficient inference_mode zero_init_last
    drop_rate drop_path_rate drop_block_rate drop_block_size attn_drop_rate proj_drop_rate pos_drop_rate
    act_layer norm_layer norm_eps aa_layer se_layer conv_layer conv_bias pad_type
    layers depth depths block_config channels dim dims embed_dim embed_dims widths num_features num_init_features
    stem_type stem_width stem_size stem_chs stem_stride stem_kernel_size replace_stem_pool fix_stem patch_size
    kernel_size kernel_sizes down_kernel_size avg_down cardinality groups base_width bottle_ratio block_reduce_first preact basic
    width_factor width_mult depth_mult depth_multiplier
    channel_multiplier deepen_factor widen_factor scale expand_ratio se_ratio se_from_exp channel_attention
    growth_rate bn_size initial_chs final_chs ch_div mlp_ratio mlp_ratios conv_mlp use_grn ls_init_value
    head_init_scale head_norm_first head_hidden_size head_widths head_bias head_norm num_heads heads window_size qkv_bias
    """.split()  # noqa: SIM905 - a list of eighty names, not of eighty quotes
)
DEPTHS = ("layers", "depth", "depths", "block_config")
MOST_BLOCKS = 1024
LARGEST = 2**16
LONGEST = 64
_WORD = re.compile(r"[\w.+-]{0,64}", re.ASCII)


def check_arguments(args: Mapping[str, Any], at: str) -> None:
    """Check what a file says about arguments of timm's `create_model`.

    Args:
        args: The values by argument.
        at: Where they stand, as messages name it.

    Raises:
        ValueError: If an argument is not among `ARGUMENTS`, or a value is none of numbers, switches, words and lists of them.
    """
    for key, value in args.items():
        where = under(at, key)
        if key not in ARGUMENTS:
            raise ValueError(
                f"{where}: no argument of timm that a file may set; kerneldna.reading.arguments.ARGUMENTS lists those"
            )
        _check_value(value, where)
        blocks = value if isinstance(value, (list, tuple)) else [value]
        if key in DEPTHS and sum(each for each in blocks if isinstance(each, int)) > MOST_BLOCKS:
            raise ValueError(f"{where}: expected {MOST_BLOCKS:,} blocks at most, given {shown(value)}")


def _check_value(value: Any, where: str) -> None:
    if isinstance(value, (list, tuple)) and len(value) <= LONGEST:
        for index, part in enumerate(value):
            _check_value(part, f"{where}[{index}]")
        return
    number = isinstance(value, (bool, int, float)) and abs(value) <= LARGEST
    word = isinstance(value, str) and _WORD.fullmatch(value)
    if not (number or word or value is None):
        raise ValueError(
            f"{where}: expected a number up to {LARGEST:,}, true, false, null, a layer's name or a list of such, "
            f"given {shown(value)}"
        )
