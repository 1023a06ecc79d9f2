"""Conformance checks that authors of tasks, scorers and allocators can run on their own."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coa_compress.allocation.losses import expected_losses
from coa_compress.allocation.widths import allowed_widths
from coa_compress.artifacts import Batch, Budget
from coa_compress.costs import full_widths
from coa_compress.errors import ModelError
from coa_compress.protocols import Adaptable, Allocator, NamedLoss, Scorer, Task
from coa_compress.structure.analysis import analyze

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_task(task: Task) -> None:
    """Check that a task keeps the promises of ``coa_compress.protocols.Task``.

    Args:
        task: Any task; its teacher is built and run a few times.

    Raises:
        ModelError: If a promise is broken, saying which.
    """
    lacking = f"{type(task).__name__} lacks a method of coa_compress.protocols.Task"
    _hold(isinstance(task, Task), lacking)
    teacher = task.build_teacher()
    _hold(not teacher.training, "build_teacher must return a network in evaluation mode")
    example = task.example_input()
    _hold(example.shape[0] == 1, "example_input must have a batch of 1")
    with torch.no_grad():
        teacher(example)
    batch = _check_batches(task)
    with torch.no_grad():
        output = teacher(batch.input)
    _hold(bool(task.losses), "losses must name at least one loss")
    _check_losses(task.losses, output, output + 0.1 if batch.target is None else batch.target)
    _hold(isinstance(task.validate(teacher), float), "validate must return a float")
    measured = task.measure(teacher)
    by_split = all(isinstance(splits, Mapping) for splits in measured.values())
    _hold(by_split, "measure must return values by split, by measure")
    if isinstance(task, Adaptable):
        _check_adaptable(task, teacher)


def check_scorer(scorer: Scorer) -> None:
    """Check that a scorer gives every channel one finite score from 0 and changes no model.

    Raises:
        ModelError: If it does not, saying what.

    >>> from coa_compress.scoring.magnitude import score_magnitude
    >>> check_scorer(score_magnitude)
    """
    net, example = _small_net()
    structure = analyze(net, example)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(2, 3, 16, 16, generator=generator) for _ in range(2)]
    batch = Batch(*images)

    def loss(output: Tensor, given: Batch) -> Tensor:
        target = output.detach() if given.target is None else given.target
        return (output - target).square().mean()

    scores, again = (scorer(net, structure.groups, [batch], loss) for _ in range(2))
    for group in structure.groups:
        _hold(group.name in scores, f"group {group.name!r} has no score")
        values = scores[group.name]
        _hold(values.shape == (group.n_channels,), "scores must have shape (n_channels,)")
        _hold(bool(torch.isfinite(values).all()), "scores must be finite")
        _hold(bool((values >= 0).all()), "scores must be at least 0")
    _check_untouched(net, before)
    same = all(torch.equal(scores[name], again[name]) for name in scores)
    _hold(same, "scores must be the same for the same model and examples")


def check_allocator(allocator: Allocator) -> None:
    """Check that an allocator never exceeds a budget and uses only allowed widths.

    Raises:
        ModelError: If it does not, saying what.

    >>> from coa_compress.allocation.uniform import allocate_uniform
    >>> check_allocator(allocate_uniform)
    """
    net, example = _small_net()
    structure = analyze(net, example)
    generator = torch.Generator().manual_seed(0)
    scores = {
        g.name: torch.rand(g.n_channels, generator=generator, dtype=torch.float64)
        for g in structure.groups
    }
    losses = expected_losses(structure.groups, scores)
    names = [group.name for group in structure.groups]
    full = full_widths(names, [group.n_channels for group in structure.groups])
    for keep in (1.0, 0.6, 0.3):
        budget = Budget(keep_macs=keep, round_to=4, min_channels=4)
        widths = allocator(structure.groups, losses, structure.costs, budget)
        for name in full:
            _hold(name in widths, f"group {name!r} has no width")
            allowed = allowed_widths(full[name], round_to=4, min_channels=4)
            _hold(widths[name] in allowed, f"width {widths[name]} of {name!r} is not in {allowed}")
        within = structure.costs.macs(widths) <= keep * structure.costs.macs(full)
        _hold(within, f"the budget of {keep:.0%} was exceeded")
        _hold(keep < 1.0 or widths == full, "a budget of 100% must keep everything")


def _check_batches(task: Task) -> Batch:
    first, again = (task.training_batch(2, torch.Generator().manual_seed(3)) for _ in range(2))
    _hold(
        torch.equal(first.input, again.input), "training_batch must depend on the generator alone"
    )
    _hold(len(first.input) == 2, "training_batch must return as many examples as asked for")
    fixed, same = task.calibration_batches(), task.calibration_batches()
    _hold(bool(fixed), "calibration_batches must return at least one batch")
    equal = all(torch.equal(a.input, b.input) for a, b in zip(fixed, same, strict=True))
    _hold(equal, "calibration_batches must always return the same")
    return first


def _check_losses(losses: Mapping[str, NamedLoss], output: Tensor, against: Tensor) -> None:
    for name, loss in losses.items():
        value = loss(output, against)
        _hold(value.numel() == 1, f"loss {name!r} must return one number")
        _hold(bool(torch.isfinite(value)), f"loss {name!r} must be finite")


def _check_adaptable(task: Adaptable, teacher: nn.Module) -> None:
    first, again = (task.real_batch(2, torch.Generator().manual_seed(3)) for _ in range(2))
    _hold(len(first) == 2, "real_batch must return as many inputs as asked for")
    _hold(torch.equal(first, again), "real_batch must depend on the generator alone")
    with torch.no_grad():
        _check_losses(task.guidance, teacher(first), first)
    measures, same = task.domain_measures(teacher), task.domain_measures(teacher)
    pairs = zip(measures.samples(), same.samples(), strict=True)
    for (name, values), (_, others) in pairs:
        floats = all(isinstance(value, float) for value in values)
        _hold(floats, f"domain_measures must return floats as {name}")
        equal = list(values) == list(others)
        _hold(equal, f"domain_measures must return the same {name} for the same model")


def _check_untouched(net: nn.Module, before: Mapping[str, Tensor]) -> None:
    after = net.state_dict()
    _hold(all(torch.equal(after[n], t) for n, t in before.items()), "the model was changed")
    _hold(all(p.grad is None for p in net.parameters()), "gradients were left in the model")
    _hold(not any(m.training for m in net.modules()), "the model was left in another mode")
    hooks = sum(len(getattr(module, kind)) for module in net.modules() for kind in _HOOKS)
    _hold(hooks == 0, "a hook was left in the model")


def _small_net() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 3, 3, padding=1),
        ).eval()
    return net, torch.zeros(1, 3, 16, 16)


def _hold(condition: bool, message: str) -> None:  # noqa: FBT001 - reads like assert
    if not condition:
        raise ModelError(message)
