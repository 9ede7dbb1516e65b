"""LAMB's backends against the formula in float64: at most twice plain torch's error, and the rules around a step."""

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from eco_fast_kernels import LambOptions, reference
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from eco_fast.config import Optimizer
from eco_fast.training.optim import lamb, lamb_apex
from eco_fast.training.optim.in_place import choose_backend
from eco_fast.training.optim.lamb import Lamb

BETAS, EPSILON, RATE, DECAY = (0.9, 0.99), 1e-6, 0.01, 0.99
BACKENDS = ("triton", "torch", "apex")
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
Options = dict[str, Any]


class FusedLAMB(torch.optim.Optimizer):
    """Stands in for apex's: its documented formula, tensor by tensor; leaves the update in the gradient."""

    def __init__(self, params: Any, lr: float = 1e-3, **options: Any) -> None:
        defaults = {
            "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "adam_w_mode": True,
            "grad_averaging": True, "max_grad_norm": 1.0, "use_nvlamb": False,
        }  # fmt: skip
        assert options.keys() <= defaults.keys()
        super().__init__(params, {"lr": lr, **defaults, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        (group,) = self.param_groups
        assert isinstance(group["lr"], float)  # the kernel takes a number
        group["step"] = group.get("step", 0) + 1
        present = [p for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in present]).norm()
        divisor = norm / group["max_grad_norm"] if norm > group["max_grad_norm"] else 1.0
        for p in present:
            state = self.state[p]
            if not state:
                state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            (beta1, beta2), decay = group["betas"], group["weight_decay"]
            m, v, g = state["exp_avg"], state["exp_avg_sq"], p.grad / divisor
            if not group["adam_w_mode"]:
                g = g + decay * p
            m.mul_(beta1).add_(g, alpha=1 - beta1 if group["grad_averaging"] else 1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            corrections = [1 - beta ** group["step"] if group["bias_correction"] else 1 for beta in (beta1, beta2)]
            update = m / corrections[0] / ((v / corrections[1]).sqrt() + group["eps"])
            if group["adam_w_mode"]:
                update = update + decay * p
            p.grad.copy_(update)
            ratio = 1.0
            if (group["use_nvlamb"] or decay) and p.norm() > 0 and update.norm() > 0:
                ratio = float(p.norm() / update.norm())
            p.sub_(group["lr"] * ratio * update)


@pytest.fixture(autouse=True)
def _backends_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the kernels of `triton` are interpreted, and apex is the class above."""
    monkeypatch.setattr(lamb, "choose_backend", lambda wanted, _: "torch" if wanted == "auto" else wanted)
    apex = ModuleType("apex.optimizers")
    apex.FusedLAMB = FusedLAMB  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", apex)


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def some_tensors(scale: float = 0.05) -> list[Tensor]:
    """Groups of one and of many; every layout; a fresh bias (norm 0) and one tensor of a norm far above 10."""
    tensors = [
        *(channels_last(8, 4, 3, 3) * scale for _ in range(2)),
        *(torch.randn(16) * scale for _ in range(5)),
        torch.randn(()),
        torch.randn(5, 7).t() * scale,
        channels_last(1, 6, 3, 3) * scale,
        torch.randn(6, 4, 1, 1) * scale,
        torch.zeros(16),
        torch.randn(1),
    ]
    return [*tensors, torch.randn(20, 30)]


def gradients_like(tensors: list[Tensor]) -> list[Tensor]:
    gradients = [torch.randn_like(p) * 10.0 ** (index % 4 - 3) for index, p in enumerate(tensors)]
    gradients[8].zero_()  # a weight that never gets any
    return gradients


def config_of(backend: str, **options: Any) -> Optimizer:
    return Optimizer(name="lamb", backend=backend, betas=BETAS, epsilon=EPSILON, **options)  # type: ignore[arg-type]


class Run:
    """An optimizer over parameters with running averages, or not."""

    def __init__(self, tensors: list[Tensor], backend: str, *, average: bool = False, **options: Any) -> None:
        self.parameters = [Parameter(tensor.clone()) for tensor in tensors]
        self.gradients = [torch.full_like(tensor, math.nan) for tensor in tensors]
        self.average = [tensor.clone() for tensor in tensors] if average else None
        self.rate, self.skip, self.inverse_scale = torch.tensor(RATE), torch.tensor(False), torch.tensor(1.0)
        config = config_of(backend, **options)
        self.lamb = Lamb(self.parameters, self.gradients, config, self.rate, average=self.average, average_decay=DECAY)

    def step(self, gradients: list[Tensor], *, skip: bool = False, inverse_scale: float = 1.0) -> None:
        """One step, of gradients that are filled into their places."""
        for place, gradient in zip(self.gradients, gradients, strict=True):
            place.copy_(gradient)
        self.skip.fill_(skip)
        self.inverse_scale.fill_(inverse_scale)
        self.lamb.step(self.skip, self.inverse_scale)
        assert self.skip == skip

    def moments(self, name: str) -> list[Tensor]:
        return [self.lamb.state[parameter][name] for parameter in self.parameters]

    def all(self) -> dict[str, list[Tensor]]:
        weights = [parameter.detach() for parameter in self.parameters]
        moments = {name: self.moments(name) for name in ("exp_avg", "exp_avg_sq")}
        return {"weights": weights, **moments, **({"average": self.average} if self.average else {})}

    def bits(self) -> list[Tensor]:
        return [tensor.clone().view(torch.int32) for tensors in self.all().values() for tensor in tensors]


def exact(tensors: list[Tensor], steps: list[list[Tensor]], clamp: float, options: Options) -> dict[str, list[Tensor]]:
    """The formula in float64."""
    rate, bound = float(torch.tensor(RATE)), options.get("clip_value", 0.0)
    weights = [tensor.double() for tensor in tensors]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    average = [weight.clone() for weight in weights]
    for gradients in steps:
        for index, gradient in enumerate(gradients):
            g = gradient.double() * options.get("inverse_scale", 1.0)
            g = g.clamp(-bound, bound) if bound else g
            m = first[index] = BETAS[0] * first[index] + (1 - BETAS[0]) * g
            v = second[index] = BETAS[1] * second[index] + (1 - BETAS[1]) * g * g
            u = m / (v.sqrt() + EPSILON) + options.get("weight_decay", 0.0) * weights[index]
            weight_norm, update_norm = min(float((weights[index] ** 2).sum()) ** 0.5, clamp), float((u**2).sum()) ** 0.5
            trust = weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
            weights[index] = weights[index] - rate * trust * u
            average[index] = DECAY * average[index] + (1 - DECAY) * weights[index]
    return {"weights": weights, "exp_avg": first, "exp_avg_sq": second, "average": average}


def plain(tensors: list[Tensor], steps: list[list[Tensor]], clamp: float, options: Options) -> dict[str, list[Tensor]]:
    """The definition in float32."""
    weights, average = ([tensor.clone() for tensor in tensors] for _ in range(2))
    first, second = ([torch.zeros_like(tensor) for tensor in tensors] for _ in range(2))
    scalars = torch.tensor(RATE), torch.tensor(False), torch.tensor(options.get("inverse_scale", 1.0))
    fixed = LambOptions(
        *BETAS, EPSILON, options.get("weight_decay", 0.0), clamp, options.get("clip_value"), average_decay=DECAY
    )
    for gradients in steps:
        reference.lamb_step(weights, gradients, first, second, average, fixed, *scalars)
    return {"weights": weights, "exp_avg": first, "exp_avg_sq": second, "average": average}


def worst(made: list[Tensor], true: list[Tensor]) -> float:
    return max(float((a.double() - b).norm()) / (float(b.norm()) or 1e-300) for a, b in zip(made, true, strict=True))


# --- the formula ---


@pytest.mark.usefixtures("poisoned_memory")
@EVERY_BACKEND
@pytest.mark.parametrize(
    "options",
    [{}, {"clip_value": 0.02}, {"weight_decay": 0.1}, {"inverse_scale": 0.25}, {"average": True},
     {"clip_value": 0.02, "weight_decay": 0.1, "inverse_scale": 0.25, "average": True}],
    ids=lambda options: "+".join(options) or "plain",
)  # fmt: skip
def test_against_float64(backend: str, options: Options) -> None:
    tensors = some_tensors()
    steps = [gradients_like(tensors) for _ in range(3 if backend == "triton" else 10)]  # the interpreter is slow
    clamp = float("inf") if backend == "apex" else 10.0
    assert max(float(tensor.norm()) for tensor in tensors) > 20
    run = Run(tensors, backend, **{name: value for name, value in options.items() if name != "inverse_scale"})
    for gradients in steps:
        run.step(gradients, inverse_scale=options.get("inverse_scale", 1.0))
    true, usual = exact(tensors, steps, clamp, options), plain(tensors, steps, clamp, options)
    for name, made in run.all().items():
        assert 0 < worst(usual[name], true[name]) < 1e-5
        assert worst(made, true[name]) <= 2 * worst(usual[name], true[name]), name
    for parameter, tensor in zip(run.parameters, tensors, strict=True):
        assert parameter.shape == tensor.shape
        assert parameter.stride() == tensor.stride()


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_by_hand(backend: str, lamb_case: Any) -> None:
    if lamb_case.clip_value == 0.0:
        pytest.skip("0 means no clipping in a recipe")
    run = Run([torch.tensor(lamb_case.start)], backend, clip_value=lamb_case.clip_value or 0.0)
    run.rate.fill_(0.1)
    # after one step m is 0.1 g and v is 0.01 g**2: the update is g / |g|
    run.step([torch.tensor(lamb_case.gradient)])
    assert run.parameters[0].tolist() == pytest.approx(lamb_case.expected, rel=1e-4)


# --- skipping ---


@EVERY_BACKEND
@pytest.mark.parametrize("bad", [1.0, float("nan"), float("inf"), -float("inf")])
def test_a_skipped_step_leaves_every_bit(backend: str, bad: float) -> None:
    tensors = some_tensors()
    run = Run(tensors, backend, average=True, clip_value=0.1, weight_decay=0.1)
    run.step(gradients_like(tensors))
    for tensors_of in run.all().values():  # zeros have signs
        tensors_of[4][:3] = torch.tensor([-0.0, 0.0, 1e-40])
    before = run.bits()
    gradients = gradients_like(tensors)
    for gradient in gradients:
        gradient.as_strided((gradient.numel(),), (1,))[::3] = bad
    run.step(gradients, skip=True, inverse_scale=0.5)
    assert all(torch.equal(after, bits) for after, bits in zip(run.bits(), before, strict=True))
    run.step(gradients_like(tensors))
    assert not any(
        torch.equal(after, bits) for index, (after, bits) in enumerate(zip(run.bits(), before, strict=True))
        if index % len(tensors) != 8 and bits.numel() > 1
    )  # fmt: skip


@EVERY_BACKEND
def test_large_gradients_are_clipped(backend: str) -> None:
    run = Run(some_tensors(), backend, clip_value=0.1)
    run.step([gradient.sign() * 3e38 for gradient in gradients_like(some_tensors())])
    assert all(parameter.isfinite().all() for parameter in run.parameters)


class NothingIsRead(TorchDispatchMode):
    """Refuses what brings a number to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host waits")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_the_host_reads_nothing(backend: str) -> None:
    run = Run(some_tensors(), backend, average=True, clip_value=0.1)
    with NothingIsRead():
        run.lamb.step(run.skip, run.inverse_scale)
        run.lamb.step(run.skip, run.inverse_scale)
        with pytest.raises(AssertionError, match="the host waits"):
            bool(run.skip)


# --- state ---


@pytest.mark.slow
@pytest.mark.parametrize("before", BACKENDS)
@pytest.mark.parametrize("after", BACKENDS)
def test_the_state_of_one_backend_loads_into_another(before: str, after: str) -> None:
    tensors = some_tensors()
    tensors[-1].mul_(0.1)  # apex does not clamp norms above 10
    steps = [gradients_like(tensors) for _ in range(4)]
    first = Run(tensors, before)
    for gradients in steps[:2]:
        first.step(gradients)
    second = Run([parameter.detach() for parameter in first.parameters], after)
    second.step(steps[0])  # has a state of its own, which is overwritten
    for parameter, source in zip(second.parameters, first.parameters, strict=True):
        parameter.data.copy_(source)
    load(second, first)
    for gradients in steps[2:]:
        for run in (first, second):
            run.step(gradients)
    for name, made in second.all().items():
        expected = first.all()[name]
        if before == after:
            assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
        assert worst(made, [tensor.double() for tensor in expected]) < 1e-6


def load(run: Run, other: Run) -> None:
    """As a checkpoint does: by copies; the run's tensors stay where they are, the rate's as well."""
    state = other.lamb.state_dict()
    assert all(set(entry) == {"exp_avg", "exp_avg_sq"} for entry in state["state"].values())
    copied = {
        index: {name: tensor.clone() for name, tensor in entry.items()} for index, entry in state["state"].items()
    }
    before = [*run.moments("exp_avg"), *run.moments("exp_avg_sq")]
    run.lamb.load_state_dict({**state, "state": copied})
    after = [*run.moments("exp_avg"), *run.moments("exp_avg_sq")]
    assert all(one is other for one, other in zip(after, before, strict=True))
    assert run.lamb.param_groups[0]["lr"] is run.rate
    for name in ("exp_avg", "exp_avg_sq"):
        assert all(torch.equal(*pair) for pair in zip(run.moments(name), other.moments(name), strict=True))


@pytest.mark.slow
@EVERY_BACKEND
def test_same_gradients_same_bits(backend: str) -> None:
    tensors = some_tensors()
    steps = [gradients_like(tensors) for _ in range(3)]
    runs = [Run(tensors, backend, average=True), Run(tensors, backend, average=True)]
    for run in runs:
        for gradients in steps:
            run.step(gradients)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].bits(), runs[1].bits(), strict=True))


@pytest.mark.parametrize("change", ["shorter", "without", "other shape"])
def test_a_state_of_other_parameters_is_refused(change: str) -> None:
    state = Run(some_tensors(), "torch").lamb.state_dict()
    if change == "shorter":
        del state["state"][1]
    elif change == "without":
        del state["state"][1]["exp_avg_sq"]
    else:
        state["state"][1]["exp_avg_sq"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"expected exp_avg(_sq)? of shape \(8, 4, 3, 3\) for parameter 1, got"):
        Run(some_tensors(), "torch").lamb.load_state_dict(state)


@EVERY_BACKEND
def test_given_moments_are_continued_in_place(backend: str) -> None:
    tensors = some_tensors()
    whole, gradients = Run(tensors, backend), gradients_like(tensors)
    moments = [tensor.clone() for tensor in whole.moments("exp_avg")], whole.moments("exp_avg_sq")
    moments[0][0].fill_(0.5)
    optimizer = Lamb(whole.parameters, whole.gradients, config_of(backend), whole.rate, moments=moments)
    for place, gradient in zip(whole.gradients, gradients, strict=True):
        place.copy_(gradient)
    optimizer.step(whole.skip, whole.inverse_scale)
    torch.testing.assert_close(moments[0][0], 0.9 * 0.5 + 0.1 * gradients[0])
    torch.testing.assert_close(moments[1][0], 0.01 * gradients[0] ** 2)
    assert optimizer.state[whole.parameters[0]] == {"exp_avg": moments[0][0], "exp_avg_sq": moments[1][0]}


# --- layouts ---


@EVERY_BACKEND
@pytest.mark.parametrize("list_of", ["gradient", "exp_avg", "weight"])
def test_other_layouts_are_refused(backend: str, list_of: str) -> None:
    """What walks through memory would pair the wrong elements."""
    parameters = [Parameter(tensor) for tensor in some_tensors()]
    lists = gradients, first, second = [[torch.zeros_like(one.detach()) for one in parameters] for _ in range(3)]
    if list_of == "gradient":
        gradients[0] = gradients[0].contiguous()
    elif list_of == "exp_avg":
        first[0] = first[0].contiguous()
    else:  # every other element of a stretch of memory
        parameters[0] = Parameter(torch.randn(*parameters[0].shape, 2)[..., 0])
        for tensors in lists:
            tensors[0] = torch.randn(*parameters[0].shape, 2)[..., 0]
    with pytest.raises(ValueError, match=r"dense|laid out like its parameter"):
        Lamb(parameters, gradients, config_of(backend), torch.tensor(RATE), moments=(first, second))


def test_the_gradients_of_autograd() -> None:
    """A network in channels_last learns; torch adds to the same gradients at each step."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 3, 3))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    gradients = [torch.zeros_like(parameter.detach()) for parameter in network.parameters()]
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer = Lamb(network.parameters(), gradients, Optimizer(name="lamb"), torch.tensor(0.02))
    losses = []
    x = torch.randn(2, 3, 9, 9)
    for _ in range(20):
        loss = (network(x) - x[..., 2:-2, 2:-2]).square().mean()
        loss.backward()
        optimizer.step(torch.tensor(False), torch.tensor(1.0))
        torch._foreach_zero_(gradients)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# --- choosing ---


@pytest.mark.parametrize("backend", ["triton", "apex"])
def test_gpu_backends_refuse_the_cpu(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"{backend} needs a GPU.*backend=torch"):
        Run(some_tensors(), backend)


def test_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert choose_backend("auto", torch.device("cpu")) == "torch"
    assert choose_backend("auto", torch.device("cuda:1")) == "triton"
    assert choose_backend("torch", torch.device("cuda")) == "torch"
    assert choose_backend("apex", torch.device("cuda")) == "apex"


def test_apex_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.delitem(sys.modules, "apex.optimizers")
    with pytest.raises(ValueError, match=r"build apex with its CUDA extensions, or take optimizer\.backend=triton"):
        Run(some_tensors(), "apex")


def test_apex_that_does_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(FusedLAMB):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options | {"use_nvlamb": False})

    monkeypatch.setattr(sys.modules["apex.optimizers"], "FusedLAMB", Other)
    with pytest.raises(ValueError, match="differs from the recipe's LAMB"):
        Run(some_tensors(), "apex")


def test_apex_says_once_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    lamb_apex._say_what_apex_lacks.cache_clear()
    for _ in range(2):
        Run(some_tensors(), "apex")
    assert capsys.readouterr().out.count("exceeds 10") == 1
