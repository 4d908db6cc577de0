"""Our layers against torch's own, where both compute the same, and against their parts where they do not."""

import math

import pytest
import torch
from torch import Tensor, nn

from detr_container.models.layers.attention import Attention
from detr_container.models.layers.dropout import dropout
from detr_container.models.layers.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer, initialise
from detr_container.models.weights.layouts import rename

WIDTH, HEADS, HIDDEN = 16, 4, 24
TO_TORCH = [
    ("ffn.linear{i}.{rest}", "linear{i}.{rest}"),
    ("cross_attn.{rest}", "multihead_attn.{rest}"),
]


def attention_pair() -> tuple[Attention, nn.MultiheadAttention]:
    ours = Attention(WIDTH, HEADS, dropout=0.0)
    nn.init.normal_(ours.in_proj_bias)
    nn.init.normal_(ours.out_proj.bias)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def padding() -> Tensor:
    """[2, 7] True on padding."""
    return torch.arange(7) >= torch.tensor([[7], [4]])


@pytest.mark.parametrize("mask", ["none", "bool", "added", "prior"])
def test_attention_is_torchs(mask: str) -> None:
    ours, theirs = attention_pair()
    query, key, value = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    added = torch.zeros(2, 7).masked_fill(padding(), -math.inf)[:, None, None]
    prior = torch.randn(2, HEADS, 5, 7) + added
    bias = {"none": None, "bool": ~padding()[:, None, None], "added": added, "prior": prior}[mask]
    options = {"attn_mask": prior.flatten(0, 1)} if mask == "prior" else {}
    if mask in ("bool", "added"):
        options = {"key_padding_mask": padding()}
    expected, weights = theirs(query, key, value, average_attn_weights=False, **options)
    torch.testing.assert_close(ours(query, key, value, bias), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.weights(query, key, bias), weights, rtol=1e-5, atol=1e-5)


def test_one_tensor_as_query_and_key_changes_nothing() -> None:
    ours, theirs = attention_pair()
    tokens, value = torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(ours(tokens, tokens, value), theirs(tokens, tokens, value)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(tokens, tokens, value), ours(tokens, tokens.clone(), value), rtol=1e-5, atol=1e-5)


def test_a_width_that_does_not_divide_by_the_heads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width of 30 does not divide by 4 heads: set head\.width or head\.heads"):
        Attention(30, 4, 0.1)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_encoder_without_positions_is_torchs(pre_norm: bool) -> None:
    layers = [EncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, pre_norm) for _ in range(2)]
    ours = Encoder(layers, WIDTH, pre_norm)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, batch_first=True, norm_first=pre_norm)
    norm = nn.LayerNorm(WIDTH) if pre_norm else None
    theirs = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
    theirs.load_state_dict(rename(ours.state_dict(), [(f"layers.{{j}}.{a}", f"layers.{{j}}.{b}") for a, b in TO_TORCH]))
    x = torch.randn(2, 7, WIDTH)
    bias = torch.zeros(2, 7).masked_fill(padding(), -math.inf)[:, None, None]
    expected = theirs(x, src_key_padding_mask=padding())
    torch.testing.assert_close(ours(x, torch.zeros_like(x), bias), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_decoder_layer_without_positions_is_torchs(pre_norm: bool) -> None:
    ours = DecoderLayer(WIDTH, HEADS, HIDDEN, 0.0, pre_norm)
    theirs = nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, 0.0, batch_first=True, norm_first=pre_norm)
    theirs.load_state_dict(rename(ours.state_dict(), TO_TORCH))
    x, memory = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH)
    bias = torch.zeros(2, 7).masked_fill(padding(), -math.inf)[:, None, None]
    out, _ = ours(x, torch.zeros(5, WIDTH), memory, memory, bias)
    expected = theirs(x, memory, memory_key_padding_mask=padding())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_positions_go_to_queries_and_keys_never_to_values(pre_norm: bool) -> None:
    layer = EncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, pre_norm)
    x, position = torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    theirs.load_state_dict(layer.self_attn.state_dict())
    value = layer.norm1(x) if pre_norm else x
    mixed = x + theirs(value + position, value + position, value)[0]
    if pre_norm:
        expected = mixed + layer.ffn(layer.norm2(mixed))
    else:
        mixed = layer.norm1(mixed)
        expected = layer.norm2(mixed + layer.ffn(mixed))
    torch.testing.assert_close(layer(x, position, None), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_decoder_starts_at_zero_and_norms_every_layers_output(pre_norm: bool) -> None:
    layers = [DecoderLayer(WIDTH, HEADS, HIDDEN, 0.0, pre_norm) for _ in range(3)]
    decoder = Decoder(layers, WIDTH)
    nn.init.normal_(decoder.norm.weight)
    queries, memory, position = torch.randn(5, WIDTH), torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    decoded = decoder(queries, memory, position, None, attention=True)
    x = torch.zeros(2, 5, WIDTH)
    for depth, layer in enumerate(layers):
        x, query = layer(x, queries, memory, memory + position, None)
        torch.testing.assert_close(decoded.states[depth], decoder.norm(x))
        assert decoded.attention is not None
        torch.testing.assert_close(decoded.attention[depth], layer.cross_attn.weights(query, memory + position))
    assert decoder(queries, memory, position, None).attention is None


def test_dropout_is_active_in_training_only() -> None:
    layer = EncoderLayer(WIDTH, HEADS, HIDDEN, 0.5, pre_norm=False)
    x, position = torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    assert not torch.equal(layer(x, position, None), layer(x, position, None))
    layer.eval()
    assert torch.equal(layer(x, position, None), layer(x, position, None))


def test_initialisation_is_the_published_one() -> None:
    layers = [EncoderLayer(256, 8, 2048, 0.1, pre_norm=False) for _ in range(2)]
    encoder = Encoder(layers, 256, pre_norm=False)
    initialise(encoder)
    first, second = layers
    # The packed projections are one matrix of 768 rows to Xavier's rule.
    for weight, bound in (
        (first.self_attn.in_proj_weight, math.sqrt(6 / 1024)),
        (first.self_attn.out_proj.weight, math.sqrt(6 / 512)),
        (first.ffn.linear1.weight, math.sqrt(6 / 2304)),
    ):
        assert 0.99 * bound < weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not first.self_attn.in_proj_bias.any()
    assert not first.self_attn.out_proj.bias.any()
    assert first.ffn.linear1.bias.abs().max().item() == pytest.approx(1 / 16, rel=0.01)
    assert not torch.equal(first.self_attn.in_proj_weight, second.self_attn.in_proj_weight)


def test_dropped_attention_is_made_again_with_the_same_drops() -> None:
    """On a CPU the weights are not kept for the gradient; made again, they must be those of the forward pass."""
    ours = Attention(WIDTH, HEADS, dropout=0.4)
    nn.init.normal_(ours.in_proj_bias)
    query, key = torch.randn(2, 5, WIDTH, requires_grad=True), torch.randn(2, 7, WIDTH, requires_grad=True)
    bias, weight = torch.randn(2, HEADS, 5, 7, requires_grad=True), torch.randn(2, 5, WIDTH)

    def results(out: Tensor) -> list[Tensor]:
        return [out, *torch.autograd.grad((out * weight).sum(), [query, key, bias, *ours.parameters()])]

    torch.manual_seed(3)
    found = results(ours(query, key, key, bias))
    q, k, v = ours._project(query, key, key)
    torch.manual_seed(3)
    mixed = dropout((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(dim=-1), 0.4) @ v
    expected = results(ours.out_proj(mixed.transpose(1, 2).flatten(2)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
