import pytest
import torch

from kerneldna.layers.attention import ChannelAttention


def naive_gate(attention, image):
    """The formula for one image (C, H, W), written with loops."""
    pooled = [image[c].mean() for c in range(len(image))]
    norm, hidden = attention.norm, []
    for h in range(attention.fc1.out_channels):
        z = sum(attention.fc1.weight[h, c, 0, 0] * pooled[c] for c in range(len(pooled)))
        if attention.fc1.bias is not None:
            z = z + attention.fc1.bias[h]
        if isinstance(norm, torch.nn.BatchNorm2d):
            z = (z - norm.running_mean[h]) / (norm.running_var[h] + norm.eps).sqrt()
            z = z * norm.weight[h] + norm.bias[h]
        hidden.append(torch.relu(z))
    gates = [
        sum(attention.fc2.weight[c, h, 0, 0] * hidden[h] for h in range(len(hidden))) + attention.fc2.bias[c]
        for c in range(len(pooled))
    ]
    return torch.sigmoid(torch.stack(gates))


def randomise(attention):
    for buffer in attention.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    return attention.eval()


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_equals_the_formula(norm):
    attention = randomise(ChannelAttention(8, 4, norm=norm))
    x = torch.randn(3, 8, 5, 6)
    expected = torch.stack([naive_gate(attention, image)[:, None, None] * image for image in x])
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("shape", [(3, 5, 6, 8), (3, 7, 8)])
def test_channels_last_equals_channels_first(shape):
    first = randomise(ChannelAttention(8, 4))
    last = ChannelAttention(8, 4, channels_last=True).eval()
    last.load_state_dict(first.state_dict())
    x = torch.randn(shape)
    moved = x.movedim(-1, 1).reshape(shape[0], 8, -1, 1)
    torch.testing.assert_close(last(x), first(moved).reshape(x.movedim(-1, 1).shape).movedim(1, -1))


def test_folded_fc1_is_fc1_and_norm():
    attention = randomise(ChannelAttention(8, 2))
    pooled = torch.randn(4, 8, 1, 1)
    weight, bias = attention.folded()
    expected = attention.norm(attention.fc1(pooled))
    torch.testing.assert_close(torch.nn.functional.conv2d(pooled, weight, bias), expected)


def test_the_gate_is_computed_in_float32_under_autocast():
    attention = randomise(ChannelAttention(8, 2))
    x = torch.randn(2, 8, 4, 4)
    seen = []
    attention.fc1.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        gate = attention.gate(x.bfloat16())
    assert seen == [torch.float32]
    assert gate.dtype == torch.bfloat16


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm is 'layer'; expected one of batch, none"):
        ChannelAttention(8, 2, norm="layer")


def test_folding_needs_running_statistics():
    attention = ChannelAttention(8, 2)
    attention.norm = torch.nn.BatchNorm2d(2, track_running_stats=False)
    with pytest.raises(ValueError, match="keeps no running statistics"):
        attention.folded()


@pytest.mark.parametrize("channels_last", [False, True])
def test_dropped_gates_are_the_batch_s_mean_in_training(channels_last):
    attention = randomise(ChannelAttention(8, 4, channels_last=channels_last, drop_rate=0.5))
    x = torch.randn(64, 5, 6, 8) if channels_last else torch.randn(64, 8, 5, 6)
    attention.norm.eval()  # so that the gate is the same in both modes
    gates = attention.gate(x).flatten(1)
    assert torch.equal(attention(x), x * attention.gate(x))
    start = attention.mean.clone()
    attention.training = True
    y = attention(x)
    found = (y / x).flatten(1)[:, -8:] if channels_last else (y / x)[:, :, 0, 0]
    mean = gates.mean(0)
    kept = (found - gates).abs().amax(1) < 1e-4
    dropped = (found - mean).abs().amax(1) < 1e-4
    assert (kept | dropped).all()
    assert 20 < kept.sum() < 44
    torch.testing.assert_close(attention.mean, 0.9 * start + 0.1 * mean)
    attention.training = False
    assert torch.equal(attention(x), x * attention.gate(x))


def test_without_dropping_there_is_no_buffer():
    assert "mean" not in ChannelAttention(8, 4).state_dict()
