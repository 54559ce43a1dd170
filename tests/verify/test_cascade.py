"""The cascade's plain mathematics is torch's own, and it rounds where FP16 autocast would and nowhere else."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mpdiag.training.precision import FP32_IEEE, in_force
from mpdiag.verify.cascade import fused_attention
from mpdiag.verify.cascade import recurrent as recurrent_room
from mpdiag.verify.cascade.fused_attention import WITH_SCALE, WITHOUT_SCALE, attention, kernel_rounding
from mpdiag.verify.cascade.recurrent import unrolled
from mpdiag.verify.cascade.step import Rounding

CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(function, tensors):
    """Outputs, and gradients of their sum weighted by fixed numbers, for fresh leaves."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    total = sum((o * normal(*o.shape, seed=9 + i)).sum() for i, o in enumerate(outputs))
    return outputs, torch.autograd.grad(total, leaves)


def assert_same(ours, theirs):
    for mine, torchs in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-5)


# attention, against torch


SHAPES = {
    "as usual": ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)),
    "three dimensions": ((3, 5, 4), (3, 5, 4), (3, 5, 4)),
    "two dimensions": ((5, 4), (7, 4), (7, 4)),
    "one head for all": ((2, 3, 5, 4), (2, 1, 7, 4), (2, 1, 7, 4)),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_attention_is_that_of_torch(shapes, scale, causal):
    parts = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    settings = {"scale": scale, "is_causal": causal}
    ours = gradients(lambda q, k, v: attention(q, k, v, **settings), parts)
    assert_same(ours, gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **settings), parts))


def test_attention_shares_keys_among_groups_of_heads_as_torch_does():
    parts = [normal(2, heads, 5, 4, seed=heads) for heads in (6, 3, 3)]
    ours = gradients(lambda q, k, v: attention(q, k, v, enable_gqa=True), parts)
    assert_same(ours, gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), parts))


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 5, 7), (2, 3, 5, 7), (1, 7)])
def test_a_mask_of_numbers_has_the_result_and_the_gradient_that_torch_gives_it(shape):
    parts = [normal(2, 3, 5, 4), normal(2, 3, 7, 4, seed=1), normal(2, 3, 7, 4, seed=2), normal(*shape, seed=3)]
    assert_same(gradients(attention, parts), gradients(F.scaled_dot_product_attention, parts))


def test_a_mask_of_truths_is_that_of_torch_also_where_a_query_may_look_at_nothing():
    parts = [normal(2, 3, 5, 4), normal(2, 3, 7, 4, seed=1), normal(2, 3, 7, 4, seed=2)]
    mask = normal(5, 7, seed=3) > 0
    mask[2] = False
    ours = gradients(lambda q, k, v: attention(q, k, v, mask), parts)
    theirs = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask), parts)
    assert_same(ours, theirs)
    assert not ours[0][0][:, :, 2].any()


def test_rows_taken_one_at_a_time_give_the_same(monkeypatch):
    parts = [normal(4, 3, 5, 4, seed=i) for i in range(3)]
    whole = gradients(attention, parts)
    monkeypatch.setattr(fused_attention, "SCORES_AT_ONCE", 1)
    assert_same(gradients(attention, parts), whole)


def test_attention_has_its_first_and_second_derivative_also_with_dropout():
    parts = [normal(2, 3, 4, seed=i).double().requires_grad_() for i in range(3)]
    dropped = lambda q, k, v: attention(q, k, v, None, 0.4, seed=5)
    assert torch.autograd.gradcheck(dropped, parts)
    assert torch.autograd.gradgradcheck(dropped, parts)


def test_dropout_without_a_seed_is_that_of_the_global_generator():
    parts = [normal(3, 4, seed=i) for i in range(3)]
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(attention(*parts, None, 0.5))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_dropout_leaves_the_generator_where_torchs_own_function_does():
    parts = [normal(2, 3, 4, seed=i) for i in range(3)]
    found = []
    for function in (attention, F.scaled_dot_product_attention):
        torch.manual_seed(1)
        function(*parts, dropout_p=0.3)
        found.append(torch.rand(3))
    assert torch.equal(*found)


def test_a_mask_beside_is_causal_goes_to_torch_with_all_arguments(monkeypatch):
    told = {}
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: told.update(kwargs) or args[0])
    q = normal(1, 2, 2)
    attention(q, q, q, torch.ones(2, 2), 0.0, True, 0.5, True)
    assert told == {"scale": 0.5, "enable_gqa": True}


def test_dropout_with_a_seed_leaves_the_stated_share_and_the_global_generator_alone():
    before = torch.get_rng_state()
    ones = torch.ones(1, 200, 200)
    weights = attention(torch.zeros(1, 200, 4), torch.zeros(1, 200, 4), torch.eye(200)[None], None, 0.25, seed=1) * 200
    assert sorted(weights.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert (weights > 0).sum() / ones.numel() == pytest.approx(0.75, abs=0.02)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mask_and_causal_together_are_refused_in_the_words_of_torch():
    with pytest.raises(RuntimeError, match="is_causal"):
        attention(*[torch.zeros(1, 2, 2)] * 3, torch.zeros(2, 2), is_causal=True)


def test_the_gradient_of_the_scores_is_rounded_with_the_scale_or_without_it():
    # two keys of equal weight: dS = +-dO/4 times the difference of the values, here 2^-24 before the scale of 1/4
    q, k, v = torch.zeros(1, 1, 16), torch.zeros(1, 2, 16), torch.zeros(1, 2, 16)
    k[0, 0, 0], v[0, 0, 0] = 0.0, 1.0
    k[0, :, 1] = torch.tensor([1.0, -1.0])
    results = {}
    for rounded in (None, WITH_SCALE, WITHOUT_SCALE):
        leaf = q.clone().requires_grad_()
        attention(leaf, k, v, rounded=rounded)[..., 0].backward(torch.full((1, 1), 2.0**-22))
        results[rounded] = leaf.grad[0, 0, 1].item()
    assert results == {None: 2.0**-25, WITH_SCALE: 0.0, WITHOUT_SCALE: 2.0**-25}
    leaf = q.clone().requires_grad_()
    attention(leaf, k, v, rounded=WITH_SCALE, log2_scale=3)[..., 0].backward(torch.full((1, 1), 2.0**-22))
    assert leaf.grad[0, 0, 1].item() == 2.0**-25


def test_nothing_inside_attention_is_rounded_where_no_fused_kernel_runs():
    assert kernel_rounding(*[torch.zeros(1, 1, 4, 8)] * 3) is None


# recurrent layers, against torch


LAYERS = [
    (kind, layers, both, first, bias, proj)
    for kind, layers, both, first, bias, proj in itertools.product(
        (nn.LSTM, nn.GRU, "tanh", "relu"), (1, 2), (False, True), (False, True), (False, True), (0, 2)
    )
    if not proj or kind is nn.LSTM
]


def recurrent(kind, layers, both, first, bias, proj):
    torch.manual_seed(3)
    settings = {"num_layers": layers, "bidirectional": both, "batch_first": first, "bias": bias}
    if isinstance(kind, str):
        return nn.RNN(3, 4, nonlinearity=kind, **settings), f"rnn_{kind}"
    extra = {"proj_size": proj} if proj else {}
    return kind(3, 4, **settings, **extra), kind.__name__.lower()


def flattened(result):
    return [t for part in result for t in (part if isinstance(part, tuple) else (part,))]


def states(net, count):
    ways = net.num_layers * (2 if net.bidirectional else 1)
    h = normal(ways, count, net.proj_size or 4, seed=7)
    return (h, normal(ways, count, 4, seed=8)) if isinstance(net, nn.LSTM) else h


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "-".join(str(getattr(x, "__name__", x)) for x in layer))
def test_a_recurrent_layer_step_by_step_is_that_of_torch(layer):
    net, name = recurrent(*layer)
    hx, data = states(net, 2), normal(2, 5, 3) if net.batch_first else normal(5, 2, 3)
    call = getattr(torch, name)
    rest = (net.bias, net.num_layers, 0.0, True, net.bidirectional, net.batch_first)
    parts = [data, *net._flat_weights]
    ours = gradients(lambda x, *w: list(unrolled(name, (x, hx, w, *rest), None)), parts)
    assert_same(ours, gradients(lambda x, *w: list(call(x, hx, list(w), *rest)), parts))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, "tanh"])
def test_packed_sequences_are_those_of_torch(kind, both):
    net, name = recurrent(kind, 2, both, False, True, 0)
    packed = nn.utils.rnn.pack_padded_sequence(normal(5, 3, 3), torch.tensor([5, 3, 1]))
    hx, rest = states(net, 3), (True, 2, 0.0, True, both)
    parts = [packed.data, *net._flat_weights]
    ours = gradients(lambda x, *w: list(unrolled(name, (x, packed.batch_sizes, hx, w, *rest), None)), parts)
    theirs = gradients(lambda x, *w: list(getattr(torch, name)(x, packed.batch_sizes, hx, list(w), *rest)), parts)
    assert_same(ours, theirs)


def test_dropout_between_layers_is_for_training_only():
    net, name = recurrent(nn.GRU, 2, False, False, True, 0)
    data, hx = normal(5, 2, 3), states(net, 2)
    run = lambda training: unrolled(name, (data, hx, net._flat_weights, True, 2, 0.5, training, False, False), None)[0]
    assert torch.equal(run(False), run(False))
    assert not torch.equal(run(True), run(True))


def test_too_many_time_steps_are_left_to_torch(monkeypatch):
    net, name = recurrent(nn.GRU, 1, False, False, True, 0)
    monkeypatch.setattr(recurrent_room, "STEPS_AT_MOST", 4)
    args = (normal(5, 2, 3), states(net, 2), net._flat_weights, True, 1, 0.0, True, False, False)
    assert unrolled(name, args, 0) is None


def test_the_gradients_of_gates_are_rounded_at_every_time_step():
    # a sum over 64 steps, each below what FP16 holds: the whole is well above it
    data, weight = torch.ones(64, 1, 1), torch.zeros(1, 1)
    found = {}
    for scale in (None, 0, 4):
        w_ih, w_hh = weight.clone().requires_grad_(), weight.clone().requires_grad_()
        args = (data, torch.zeros(1, 1, 1), [w_ih, w_hh], False, 1, 0.0, True, False, False)
        unrolled("rnn_tanh", args, scale)[0].backward(torch.full((64, 1, 1), 2.0**-26))
        found[scale] = w_ih.grad.item()
    assert found == {None: 2.0**-20, 0: 0.0, 4: 2.0**-20}


# what is FP16 and what is not, in a pass


class Model(nn.Module):
    """One linear layer whose output goes through a function of the test's."""

    def __init__(self, function):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.first.weight)
        self.function = function

    def forward(self, x):
        return self.function(self.first(x))


def weight_gradient(function, x, gradient, names=("first",), scale=0):
    model = Model(function)
    with Rounding(frozenset(names), scale).on(model):
        model(x).backward(torch.as_tensor(gradient).expand(x.shape))
    return model.first.weight.grad


SATURATED = torch.diag(torch.tensor([0.0, 1.0, 4.0, 6.0]))  # tanh(6) is 1 in FP16


@pytest.mark.parametrize("tanh", [torch.tanh, F.tanh, nn.Tanh(), torch.Tensor.tanh], ids=["torch", "F", "nn", "method"])
def test_a_tanh_that_fp16_rounds_to_one_passes_nothing_on(tanh):
    wanted = weight_gradient(tanh, SATURATED, 1.0, ("first", "function")).diag()
    assert wanted[3] == 0
    assert (wanted[1:3] > 0).all()
    exact = torch.tanh(SATURATED.diag().double())
    assert wanted[1].item() == pytest.approx((1 - exact[1] ** 2).item(), rel=2e-3)


def test_what_the_code_turns_to_fp32_is_not_rounded():
    assert weight_gradient(lambda y: torch.tanh(y.float()), SATURATED, 1.0).diag()[3] != 0
    assert weight_gradient(lambda y: torch.tanh(y.to(torch.float32)), SATURATED, 1.0).diag()[3] != 0
    assert weight_gradient(lambda y: torch.tanh(y + torch.zeros(4)), SATURATED, 1.0).diag()[3] != 0


def test_operators_that_autocast_runs_in_fp32_are_not_rounded():
    gradient = torch.tensor([1.0, 0.0, 0.0, 0.0]) * 2.0**-20
    found = []
    weight_gradient(lambda y: _caught(F.softmax(y, -1) * 1.0, found), torch.eye(4), gradient)
    assert not torch.equal(found[0], found[0].half().float())


def _caught(tensor, found):
    found.append(tensor.detach().clone())
    return tensor


def test_the_code_switches_autocast_off_where_it_says_so():
    def product(y):
        with torch.autocast("cpu", enabled=False):
            return y.float() @ torch.eye(4)

    outputs = []
    weight_gradient(lambda y: _caught(product(y.float() + 1e-5), outputs), torch.eye(4), 1.0)
    assert outputs[0][0, 1].item() == pytest.approx(1e-5, rel=1e-6)  # FP16 holds no such number, nor 1.00001
    assert outputs[0][0, 0].item() == pytest.approx(1.00001, rel=1e-7)


def in_an_fp32_run(function):
    """Gradients of the first weight, rounded as in FP16, where the forward is `function`, and the regions met."""
    with in_force(FP32_IEEE, CPU) as region:
        gradient = weight_gradient(function, SATURATED, 1.0, ("first", "function"))
    return gradient, region.own_autocast


def of_a_product(y):
    """FP16 where autocast is on, FP32 where it is off, as the product before it."""
    return torch.tanh(y.float() @ torch.eye(4))


AMP_REGIONS = {
    "amp": lambda: torch.autocast("cuda", dtype=torch.float16),
    "keyword": lambda: torch.autocast(device_type="cuda"),
    "older": lambda: torch.cuda.amp.autocast(),
    "cpu": lambda: torch.autocast("cpu", dtype=torch.float16),
}


@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast")
@pytest.mark.parametrize("region", AMP_REGIONS.values(), ids=AMP_REGIONS)
def test_a_forward_with_its_own_cuda_region_is_rounded_on_a_cpu_as_one_without(region):
    def under_amp(y):
        with region():
            return of_a_product(y)

    plain, none = in_an_fp32_run(of_a_product)
    found, met = in_an_fp32_run(under_amp)
    assert plain.diag()[3] == 0  # FP16's tanh(6) is 1
    assert torch.equal(found, plain)
    assert (bool(none), bool(met)) == (False, True)


@pytest.mark.parametrize("device_type", ["cuda", "cpu"])
def test_an_island_of_either_device_is_not_rounded_on_a_cpu(device_type):
    def island(y):
        with torch.autocast(device_type, enabled=False):
            return of_a_product(y)

    found, met = in_an_fp32_run(island)
    assert found.diag()[3] != 0
    assert met == []


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_region_of_another_device_changes_nothing():
    made_earlier = torch.autocast("cuda")  # as a decorator does on import; torch without CUDA has switched it off

    def decorated(y):
        with made_earlier:
            return of_a_product(y)

    assert torch.equal(in_an_fp32_run(decorated)[0], in_an_fp32_run(of_a_product)[0])


def test_cross_entropy_of_fp16_logits_has_fp16_log_probabilities():
    x = torch.eye(4) * 3
    found = []

    def loss(y):
        each = F.cross_entropy(y, torch.arange(4), reduction="none")
        return _caught(each, found).unsqueeze(1) * torch.ones(4)

    weight_gradient(loss, x, 1.0)
    weight_gradient(lambda y: loss(y.float()), x, 1.0)
    assert torch.equal(found[0], F.log_softmax(x, 1).diag().neg().half().float())
    assert torch.equal(found[1], F.cross_entropy(x, torch.arange(4), reduction="none"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_keeps_all_its_arguments(smoothing):
    x = normal(6, 4)
    target, weight = torch.tensor([0, 1, 2, 3, -1, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    settings = {"weight": weight, "ignore_index": -1, "label_smoothing": smoothing, "reduction": "sum"}
    found = []
    weight_gradient(lambda y: _caught(F.cross_entropy(input=y, target=target, **settings), found) * y, x, 1.0)
    assert found[0].item() == pytest.approx(F.cross_entropy(x, target, **settings).item(), rel=1e-2)


@pytest.mark.parametrize("need_weights", [False, True])
def test_what_multi_head_attention_projects_with_is_rounded(need_weights):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = normal(2, 5, 8)
    plain = model(x, x, x, need_weights=need_weights)[0]
    (plain * 2.0**-24).sum().backward()
    queries_and_keys = model.in_proj_weight.grad[:16]
    assert queries_and_keys.all()
    model.zero_grad()
    with Rounding(frozenset({"MultiheadAttention"}), 0).on(model):
        found = model(x, x, x, need_weights=need_weights)[0]
        (found * 2.0**-24).sum().backward()
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-3)
    assert not torch.equal(found, plain)
    assert (model.in_proj_weight.grad[:16] == 0).float().mean() > 0.5  # what comes from the scores is about 2^-27
    assert model.in_proj_weight.grad[16:].any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_computes_the_same_again(reentrant):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    class Attending(nn.Module):
        def __init__(self, recompute):
            super().__init__()
            self.body, self.recompute = build(), recompute

        def part(self, x):
            y = self.body(x)
            return F.scaled_dot_product_attention(y, y, y, dropout_p=0.3)

        def forward(self, x):
            return checkpoint(self.part, x, use_reentrant=reentrant) if self.recompute else self.part(x)

    found = []
    for recompute in (False, True):
        model, x = Attending(recompute), normal(2, 5, 4).requires_grad_()
        torch.manual_seed(1)
        with Rounding(frozenset({"body", "body.0", "body.1", "body.2"}), 0).on(model):
            (model(x) * 2.0**-18).sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


def test_a_pass_leaves_nothing_behind():
    model = Model(torch.tanh)
    enter, leave, generator = torch.autocast.__enter__, torch.autocast.__exit__, torch.get_rng_state()
    weight, x = model.first.weight.detach().clone(), SATURATED.clone()
    with Rounding(frozenset({"first"}), 0).on(model):
        model(x).sum().backward()
    assert torch.equal(model.first.weight, weight)
    assert torch.equal(x, SATURATED)
    assert torch.equal(torch.get_rng_state(), generator)
    assert (torch.autocast.__enter__, torch.autocast.__exit__) == (enter, leave)
    model.zero_grad()
    model(x).sum().backward()
    assert model.first.weight.grad[3, 3] != 0


def test_a_parameter_that_a_module_returns_keeps_its_value():
    class Returned(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0 + 2.0**-20]))

        def forward(self):
            return self.weight

    model = Returned()
    with Rounding(frozenset({"Returned"}), 0).on(model):
        model().sum().backward()
    assert model.weight.item() == 1.0 + 2.0**-20


def test_what_is_expanded_is_left_as_it_lies():
    model = Model(lambda y: y[:1].expand(4, 4))
    with Rounding(frozenset({"first", "Model"}), 0).on(model):
        model(torch.eye(4)).sum().backward()
    assert math.isclose(model.first.weight.grad[0, 0].item(), 4.0)
