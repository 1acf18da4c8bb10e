import pytest
import torch
from torch import nn

from components.training.optimizers import Joint, adamw, adamw_groups, muon, parameter_groups
from components.training.schedules import schedule

ADAM = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MUON = {"lr": 0.01, "momentum": 0.95, **ADAM}


def tiny_model(seed=0):
    torch.manual_seed(seed)
    model = nn.Module()
    model.embed_tokens = nn.Embedding(7, 4)
    model.layers = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)])
    model.lm_head = nn.Linear(4, 7, bias=False)
    return model


def output(model, ids):
    x = model.embed_tokens(ids)
    for layer in model.layers:
        x = layer(x)
    return model.lm_head(x)


def train(model, optimizer, scheduler, steps):
    for step in steps:
        ids = torch.randint(0, 7, (8,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(output(model, ids), (ids + 1) % 7).backward()
        optimizer.step()
        scheduler.step()


def warmup(step):
    return schedule("cosine", step, warmup_steps=3, total_steps=12, final_fraction=0.1)


def names_of(optimizer, model):
    """{group name: names of the parameters in it}."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: [name_of[p] for p in group["params"]] for group in optimizer.param_groups}


# groups


def test_matrices_decay_and_vectors_do_not():
    decaying, others = parameter_groups(tiny_model().named_parameters(), weight_decay=0.1)
    assert [tuple(p.shape) for p in decaying["params"]] == [(7, 4), (4, 4), (4, 4), (7, 4)]
    assert [tuple(p.shape) for p in others["params"]] == [(4,)] * 4
    assert decaying["weight_decay"] == 0.1 and others["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out_and_empty_groups_too():
    model = tiny_model()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="at least one parameter that requires a gradient"):
        parameter_groups(model.named_parameters(), weight_decay=0.1)
    model.lm_head.requires_grad_(True)
    (group,) = parameter_groups(model.named_parameters(), weight_decay=0.1)
    assert group["params"][0] is model.lm_head.weight


def test_adamw_names_its_groups_and_is_fused():
    model = tiny_model()
    optimizer = adamw(model.named_parameters(), lr=3e-4, **ADAM)
    names = names_of(optimizer, model)
    assert list(names) == ["model", "model_no_decay"]
    assert names["model"] == ["embed_tokens.weight", "layers.0.weight", "layers.2.weight", "lm_head.weight"]
    assert all(group["fused"] and group["lr"] == 3e-4 for group in optimizer.param_groups)
    assert all(group["betas"] == (0.9, 0.95) and group["eps"] == 1e-8 for group in optimizer.param_groups)


def test_policy_and_value_have_their_own_rates_under_distinct_names():
    policy, value = tiny_model(0), tiny_model(1)
    optimizer = adamw_groups(
        {"policy": (policy.named_parameters(), 1e-5), "value": (value.named_parameters(), 9e-6)}, **ADAM
    )
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"policy": 1e-5, "policy_no_decay": 1e-5, "value": 9e-6, "value_no_decay": 9e-6}
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"policy": 0.1, "policy_no_decay": 0.0, "value": 0.1, "value_no_decay": 0.0}


def test_a_parameter_shared_by_two_groups_is_refused():
    parameters = list(tiny_model().named_parameters())
    with pytest.raises(ValueError, match="more than one parameter group"):
        adamw_groups({"policy": (parameters, 1.0), "value": (parameters, 1.0)}, **ADAM)


def test_the_first_step_of_adamw_by_hand():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.fill_(0.5)
    optimizer = adamw(model.named_parameters(), lr=0.1, **ADAM)
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    optimizer.step()
    # the first step of Adam is −lr·sign(gradient); only the matrix shrinks, by 1 − 0.1·0.1
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.99 - 0.1, -1.98 - 0.1]]))
    torch.testing.assert_close(model.bias.detach(), torch.tensor([0.4]))


# Muon


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = tiny_model()
    names = names_of(muon(model.named_parameters(), **MUON), model)
    assert names["muon"] == ["layers.0.weight", "layers.2.weight"]
    assert names["adamw"] == ["embed_tokens.weight", "lm_head.weight"]
    assert names["adamw_no_decay"] == ["layers.0.bias", "layers.1.weight", "layers.1.bias", "layers.2.bias"]


def test_muon_without_a_hidden_matrix_recommends_adamw():
    with pytest.raises(ValueError, match="use adamw"):
        muon(nn.Linear(2, 2).named_parameters(), **MUON)


def test_muon_works_with_hidden_matrices_alone():
    model = tiny_model()
    only = [(name, p) for name, p in model.named_parameters() if name == "layers.0.weight"]
    optimizer = muon(only, **MUON)
    assert [group["name"] for group in optimizer.param_groups] == ["muon"]


def test_muon_updates_every_parameter_as_its_two_parts_would_alone():
    model, twin = tiny_model(), tiny_model()
    optimizer = muon(model.named_parameters(), **MUON)
    hidden = [twin.layers[0].weight, twin.layers[2].weight]
    ends = [twin.embed_tokens.weight, twin.lm_head.weight]
    vectors = [p for p in twin.parameters() if p.dim() == 1]
    alone = [
        torch.optim.Muon(hidden, lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(ends, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True),
        torch.optim.AdamW(vectors, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True),
    ]
    ids = torch.arange(7)
    for _ in range(3):
        for each, steppers in ((model, [optimizer]), (twin, alone)):
            each.zero_grad()
            nn.functional.cross_entropy(output(each, ids), (ids + 1) % 7).backward()
            for stepper in steppers:
                stepper.step()
    start = tiny_model()
    for one, other, before in zip(model.parameters(), twin.parameters(), start.parameters(), strict=True):
        assert torch.equal(one, other) and not torch.equal(one, before)


def test_muon_replaces_adamw_by_name_alone():
    model = tiny_model()
    [rate] = {group["momentum"] for group in muon(model.named_parameters(), lr=0.01, **ADAM).param_groups[:1]}
    assert rate == 0.95


def test_joint_optimizers_of_joint_ones_step_every_group_at_its_own_rate():
    model, twin = tiny_model(), tiny_model(1)
    joint = Joint(muon(model.named_parameters(), **MUON), muon(twin.named_parameters(), **MUON))
    for group in joint.param_groups[3:]:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in (*model.parameters(), *twin.parameters())]
    (output(model, torch.arange(7)).square().mean() + output(twin, torch.arange(7)).square().mean()).backward()
    joint.step()
    moved = [not torch.equal(p, b) for p, b in zip((*model.parameters(), *twin.parameters()), before, strict=True)]
    assert moved == [True] * 8 + [False] * 8
    assert set(joint.state) == {*model.parameters(), *twin.parameters()}


def test_a_group_that_no_part_would_step_is_refused():
    optimizer = muon(tiny_model().named_parameters(), **MUON)
    with pytest.raises(ValueError, match="one more group, 'value_muon', which none of the joint parts would update"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "name": "value_muon"})


def test_a_closure_is_evaluated_once_with_gradients():
    model, calls = tiny_model(), []
    optimizer = muon(model.named_parameters(), **MUON)

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = output(model, torch.arange(7)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert calls == [True]


@pytest.mark.parametrize("build", [lambda p: adamw(p, lr=0.01, **ADAM), lambda p: muon(p, **MUON)])
def test_resuming_from_a_state_dict_continues_to_the_bit(build, tmp_path):
    whole, first, second = tiny_model(), tiny_model(), tiny_model(seed=9)
    optimizer = build(whole.named_parameters())
    train(whole, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, warmup), range(8))

    optimizer = build(first.named_parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup)
    train(first, optimizer, scheduler, range(5))
    states = [first.state_dict(), optimizer.state_dict(), scheduler.state_dict()]
    torch.save(states, tmp_path / "state.pt")

    optimizer = build(second.named_parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for target, state in zip((second, optimizer, scheduler), saved, strict=True):
        target.load_state_dict(state)
    train(second, optimizer, scheduler, range(5, 8))
    for one, other, stopped in zip(whole.parameters(), second.parameters(), first.parameters(), strict=True):
        assert torch.equal(one, other) and not torch.equal(one, stopped)


@pytest.mark.parametrize("build", [lambda p: adamw(p, lr=0.01, **ADAM), lambda p: muon(p, **MUON)])
def test_a_scheduler_reaches_every_group(build):
    model = tiny_model()
    optimizer = build(model.named_parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup)
    assert all(group["lr"] == pytest.approx(0.01 / 3) for group in optimizer.param_groups)
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, scheduler, [0])
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    train(model, optimizer, scheduler, [1])
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


# schedule


@pytest.mark.parametrize(
    "step, lr",
    [
        (0, 6e-5),
        (4, 3e-4),
        (9, 6e-4),
        (10, 6e-4),
        (35, 5.20918831e-4),
        (60, 3.3e-4),
        (85, 1.39081169e-4),
        (109, 6.0133229e-5),
        (110, 6e-5),
        (5000, 6e-5),
    ],
)
def test_cosine_with_warmup_by_hand(step, lr):
    multiplier = schedule("cosine", step, warmup_steps=10, total_steps=110, final_fraction=0.1)
    assert 6e-4 * multiplier == pytest.approx(lr, abs=1e-12)


def test_linear_decay_wastes_no_step():
    rates = [schedule("linear", step, warmup_steps=0, total_steps=4, final_fraction=0.0) for step in range(5)]
    assert rates == [1, 0.75, 0.5, 0.25, 0]


def test_linear_decay_to_a_fraction_after_warmup():
    rates = [schedule("linear", step, warmup_steps=2, total_steps=6, final_fraction=0.2) for step in range(7)]
    assert rates == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_constant_warms_up_and_stays_and_needs_no_end():
    never = {"total_steps": -1, "final_fraction": 0.0}
    rates = [schedule("constant", step, warmup_steps=4, **never) for step in range(7)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1]


WSD = {"warmup_steps": 2, "total_steps": 10, "decay_share": 0.4}  # steps 0-1 warm up, 2-5 are stable, 6-9 decay


@pytest.mark.parametrize(
    ("shape", "final", "decaying"),
    [
        ("linear", 0.0, [1, 0.75, 0.5, 0.25, 0]),
        ("linear", 0.2, [1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", 0.0, [1, 0.8535533906, 0.5, 0.1464466094, 0]),  # (1 + cos 45°)/2 at the second
        ("sqrt", 0.0, [1, 0.5, 0.2928932188, 0.1339745962, 0]),  # 1 − √¼, 1 − √½, 1 − √¾
        ("sqrt", 0.5, [1, 0.75, 0.6464466094, 0.5669872981, 0.5]),
    ],
)
def test_wsd_warms_up_stays_and_decays_at_the_end_by_hand(shape, final, decaying):
    rates = [schedule("wsd", step, **WSD, decay_shape=shape, final_fraction=final) for step in range(11)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, *decaying], abs=1e-10)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_wsd_that_decays_all_along_is_the_schedule_of_its_shape(shape):
    common = {"warmup_steps": 3, "total_steps": 12, "final_fraction": 0.1}
    for step in range(14):
        wsd = schedule("wsd", step, **common, decay_share=1.0, decay_shape=shape)
        assert wsd == schedule(shape, step, **common)


def test_wsd_without_a_decay_is_constant_also_after_its_end():
    stable = WSD | {"decay_share": 0.0, "final_fraction": 0.0}
    assert [schedule("wsd", step, **stable) for step in (0, 1, 2, 9, 10, 11, 500)] == [0.5, 1, 1, 1, 1, 1, 1]


def test_a_warmup_that_reaches_into_the_decay_delays_it():
    rates = [schedule("wsd", step, **WSD | {"warmup_steps": 8}, final_fraction=0.0) for step in range(7, 11)]
    assert rates == [1, 1, 0.5, 0]


def test_a_run_shorter_than_its_warmup_just_warms_up():
    rates = [schedule("cosine", step, warmup_steps=4, total_steps=2, final_fraction=0.1) for step in range(2)]
    assert rates == [0.25, 0.5]


@pytest.mark.parametrize(
    "kind, step, counts, message",
    [
        ("cosin", 0, (0, 10), "'cosin'"),
        ("cosine", -1, (0, 10), "at least 0"),
        ("cosine", 0, (-1, 10), "at least 0"),
        ("linear", 0, (0, -1), "linear needs total_steps"),
        ("wsd", 0, (0, 0), "wsd needs total_steps"),
    ],
)
def test_invalid_schedules_are_refused(kind, step, counts, message):
    with pytest.raises(ValueError, match=message):
        schedule(kind, step, warmup_steps=counts[0], total_steps=counts[1], final_fraction=0.1)


def test_an_unknown_shape_of_a_decay_is_refused():
    with pytest.raises(ValueError, match="linear, cosine or sqrt, got 'square'"):
        schedule("wsd", 9, **WSD, final_fraction=0.1, decay_shape="square")
