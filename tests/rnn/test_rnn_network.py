"""The masked RNN: padding cannot matter, and every part agrees with plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reaction_worlds import LONGEST, WIDTH, made_network, made_videos

from rnn.losses import reaction_loss
from rnn.network import NetworkConfig, ReadoutLayer, RecurrentLayers, brought_to, random_rnn

READOUTS = ("routed-dense", "masked-statistics", "masked-maximum", "masked-mean", "last", "attention")
CELLS = ("gru", "lstm", "rnn")


def sequences(lengths, dtype=torch.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=(length, WIDTH))).to(dtype) for length in lengths]


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_prediction_depends_on_no_company(readout, cell, bidirectional):
    """Alone, among others, in one group or in four, in any order: to 1e-12."""
    config = NetworkConfig(
        readout=readout, cell=cell, bidirectional=bidirectional, units=7, dense_width=4, layers=2, activation="tanh"
    )
    network = made_network(config).double().eval()
    videos = sequences([3, 14, 1, 8, 8, 2, 13])
    with torch.inference_mode():
        alone = torch.cat([network([each]) for each in videos])
        torch.testing.assert_close(network(videos), alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(network(videos[::-1]).flip(0), alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(network.head(network.features(videos, groups=1)), alone, rtol=0, atol=1e-12)
    assert (alone[0] - alone[1]).abs().max() > 1e-6


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("filling", [0.0, 7.0, float("nan"), float("inf")])
@pytest.mark.parametrize("cell", CELLS)
def test_content_and_amount_of_padding_cannot_matter(cell, readout, bidirectional, dtype, within, filling):
    config = NetworkConfig(cell=cell, readout=readout, bidirectional=bidirectional, units=7, dense_width=4)
    torch.manual_seed(0)
    recurrent = RecurrentLayers(WIDTH, config).to(dtype)
    layer = ReadoutLayer(7 * (1 + bidirectional), LONGEST, config).to(dtype)
    videos, lengths = sequences([3, 9, 1], dtype), torch.tensor([3, 9, 1])

    def read(steps: int) -> torch.Tensor:
        padded = torch.full((3, steps, WIDTH), filling, dtype=dtype)
        for row, each in zip(padded, videos):
            row[: len(each)] = each
        return layer(recurrent(padded, lengths), lengths)

    plain = torch.cat(
        [layer(recurrent(each[None], torch.tensor([len(each)])), torch.tensor([len(each)])) for each in videos]
    )
    for steps in (9, 14):
        torch.testing.assert_close(read(steps), plain, rtol=0, atol=within)
    read(14).sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in [*recurrent.parameters(), *layer.parameters()])


def test_groups_change_neither_the_loss_nor_its_gradients():
    found = []
    for groups in (1, 4):
        network, videos = made_network(NetworkConfig(units=6, dense_width=4)).double(), made_videos(30)
        batch = [torch.from_numpy(each).double() for each in videos.sequences.take(np.arange(30))]
        loss, _ = reaction_loss(
            network.head(network.features(batch, groups=groups)), torch.from_numpy(videos.labels), "pearson"
        )
        loss.backward()
        found.append((loss.item(), [each.grad for each in network.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-12)
    for one, other in zip(found[0][1], found[1][1]):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


# --- an independent reference, in NumPy ---


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_states(cell, weights, x):
    """(l, units) by the cells' published equations; gates in torch's order."""
    w, u, b, c = (weights[f"recurrent.layers.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    units = u.shape[1]
    h, memory, states = np.zeros(units), np.zeros(units), []
    for step in x:
        below, beside = w @ step + b, u @ h + c
        if cell == "rnn":
            h = np.tanh(below + beside)
        elif cell == "gru":
            (xr, xz, xn), (hr, hz, hn) = np.split(below, 3), np.split(beside, 3)
            reset, update = sigmoid(xr + hr), sigmoid(xz + hz)
            h = (1 - update) * np.tanh(xn + reset * hn) + update * h
        else:
            i, f, g, o = np.split(below + beside, 4)
            memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(memory)
        states.append(h)
    return np.array(states)


def reference(config, weights, x):
    """(7,) of one video, in evaluation: running statistics in the norm."""
    states = reference_states(config.cell, weights, x)
    dense = weights["readout.dense.weight"]
    if config.readout == "routed-dense":
        vector = sum(states[t] @ dense[t] for t in range(len(states)))
    else:
        mean = states.mean(axis=0)
        deviation = np.sqrt(((states - mean) ** 2).mean(axis=0) + 1e-8)
        parts = {
            "masked-statistics": [states.max(axis=0), mean, deviation],
            "masked-maximum": [states.max(axis=0)],
            "masked-mean": [mean],
            "last": [states[-1]],
        }
        if config.readout == "attention":
            score = states @ weights["readout.attention.weight"][0] + weights["readout.attention.bias"]
            share = np.exp(score - score.max())
            pooled = (share / share.sum()) @ states
        else:
            pooled = np.concatenate(parts[config.readout])
        vector = dense @ pooled
    normed = (vector - weights["norm.running_mean"]) / np.sqrt(weights["norm.running_var"] + 1e-5)
    hidden = np.maximum(normed * weights["norm.weight"] + weights["norm.bias"], 0)
    return sigmoid(weights["output.weight"] @ hidden + weights["output.bias"])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_network_is_what_its_equations_say(readout, cell):
    config = NetworkConfig(readout=readout, cell=cell, units=7, dense_width=4)
    network = made_network(config).double().eval()
    with torch.no_grad():
        for buffer in (network.norm.running_mean, network.norm.running_var):
            buffer.copy_(torch.linspace(0.1, 0.9, 4))
    weights = {name: each.numpy() for name, each in network.state_dict().items()}
    videos = sequences([5, 14, 1])
    with torch.inference_mode():
        ours = network(videos).numpy()
    expected = np.stack([reference(config, weights, each.numpy()) for each in videos])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_two_layers_both_ways_are_what_their_equations_say(cell):
    """The way back begins at each video's own last step; the second layer sees both ways of the first."""
    config = NetworkConfig(cell=cell, bidirectional=True, layers=2, units=4)
    torch.manual_seed(1)
    recurrent = RecurrentLayers(WIDTH, config).double()
    weights = {name: each.numpy() for name, each in recurrent.layers.state_dict().items()}

    def one_layer(number: int, x: np.ndarray) -> np.ndarray:
        ways = []
        for end, turned in [("", False), ("_reverse", True)]:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            own = {f"recurrent.layers.{name}_l0": weights[f"{name}_l{number}{end}"] for name in names}
            states = reference_states(cell, own, x[::-1] if turned else x)
            ways.append(states[::-1] if turned else states)
        return np.concatenate(ways, axis=1)

    videos = sequences([5, 9, 1])
    padded = torch.nn.utils.rnn.pad_sequence(videos, batch_first=True, padding_value=float("nan"))
    with torch.inference_mode():
        found = recurrent(padded, torch.tensor([5, 9, 1])).numpy()
    for states, video in zip(found, videos, strict=True):
        expected = one_layer(1, one_layer(0, video.numpy()))
        np.testing.assert_allclose(states[: len(video)], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("readout", READOUTS)
def test_a_rank_without_videos_still_has_a_graph(readout):
    """Its backward has to pass the gather that the other ranks wait in."""
    network = made_network(NetworkConfig(readout=readout, units=4, dense_width=3))
    features = network.features([])
    assert features.shape == (0, 3)
    features.sum().backward()


def test_no_mask_lets_what_runs_on_beyond_the_end_count():
    """The comparison without a mask: the states that nothing drives go into the dense layer."""
    config = NetworkConfig(readout="unmasked-dense", units=7, dense_width=4)
    network = made_network(config).double().eval()
    weights = {name: each.numpy() for name, each in network.state_dict().items()}
    (video,) = sequences([5])
    padded = np.concatenate([video.numpy(), np.zeros((LONGEST - 5, WIDTH))])
    with torch.inference_mode():
        np.testing.assert_allclose(
            network([video]).numpy()[0],
            reference(NetworkConfig(units=7, dense_width=4), weights, padded),
            rtol=0,
            atol=1e-12,
        )


@pytest.mark.parametrize(
    ("how", "length", "expected"),
    [
        ("cut", 3, [0, 1, 2, 2, 2]),
        ("cut", 7, [0, 1, 2, 3, 4]),
        ("repeat", 3, [0, 1, 2, 0, 1]),
        ("even", 3, [0, 0, 1, 2, 2]),
        ("even", 9, [0, 2, 4, 6, 8]),
        ("true", 9, [0, 2, 4, 6, 8]),
        ("true", 4, None),
    ],
)
def test_videos_are_brought_to_one_length_as_asked(how, length, expected):
    """Under true lengths, only what the weights a step do not reach is sampled, evenly."""
    (seen,) = brought_to(np.array([length]), 5, NetworkConfig(lengths=how))
    assert (seen if seen is None else seen.tolist()) == expected


def test_readouts_without_weights_a_step_take_any_length():
    network = random_rnn(WIDTH, 5, NetworkConfig(readout="masked-statistics", units=4), seed=0).eval()
    assert torch.isfinite(network(sequences([400], torch.float32))).all()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"units": 0}, "--network.units 0"),
        ({"dropout": 1.0}, "--network.dropout"),
        ({"lengths": "cut", "readout": "last"}, "--network.lengths cut"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        NetworkConfig(**wrong)


def test_a_seed_decides_the_weights_and_leaves_torchs_own_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = (random_rnn(WIDTH, 9, NetworkConfig(units=4), seed=2).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(random_rnn(WIDTH, 9, NetworkConfig(units=4), seed=3).output.weight, one["output.weight"])
