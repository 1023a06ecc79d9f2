"""From a network or a recipe to a result: the stages, run in order, behind one call."""

import hashlib
import inspect
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.atomic import write_atomic
from coa_compress.copying import check_shaped, copied, placed, unwrapped
from coa_compress.errors import CoaWarning, ModelError, RecipeError, RunError, warnings_passed
from coa_compress.opening import open_network
from coa_compress.protocols import (
    Fingerprinted,
    Noted,
    Observer,
    ReadByStage,
    Rebuildable,
    SilentObserver,
    Task,
)
from coa_compress.provenance import usable_device
from coa_compress.recipe.assembly import plain, plain_recipe
from coa_compress.recipe.files import (
    SCHEMA,
    default_recipe,
    dump_recipe,
    load_recipe,
)
from coa_compress.recipe.schema import Recipe
from coa_compress.report.write import REPORT_PAGE, write_report
from coa_compress.result import (
    Result,
    TemporaryFolder,
    final_network,
    make_report,
    student_record,
    summary_of,
)
from coa_compress.runs import RunFolder, digest_of, open_run
from coa_compress.stages.cache import StageCache
from coa_compress.stages.order import decisive_settings, in_rounds
from coa_compress.stages.pipeline import Identity, check_stages, run_stages
from coa_compress.stages.plan import plan_table
from coa_compress.stages.state import Context, Stage, State
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exported import ExportedStructure
from coa_compress.training.processes import ALONE, Processes


class Compressor:
    """Compress, distill and adapt a network.

    Args:
        model: Any image-to-image network; it is unchanged, bit for bit. Of one that is wrapped by
            ``torch.compile``, ``nn.DataParallel`` or the like, what is inside is compressed. None
            takes the ``model`` of the recipe, or the teacher of its task.
        recipe: A recipe, or the path of one; None compresses to half of the MACs by
            self-distillation on built-in images.
        task: The problem, as an object; None takes the one that the recipe names.
        example: One input, batch 1, at which MACs are counted; None asks the task.
        out: The run folder; None takes the recipe's, or, when there is no recipe, a temporary one
            that is there as long as this object or its result.
        observer: Hears how it goes; None for nobody.

    Raises:
        ModelError: If neither a model nor a recipe is given, or the model cannot be copied.
        RecipeError: If the recipe is wrong, or names a device that is not there.

    Warns:
        CoaWarning: If the weights are not float32, in which networks are compressed.

    >>> Compressor()
    Traceback (most recent call last):
    coa_compress.errors.ModelError: nothing to compress: give a model or a recipe
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        recipe: Recipe | Path | str | None = None,
        task: Task | None = None,
        example: Tensor | None = None,
        out: Path | str | None = None,
        observer: Observer | None = None,
    ) -> None:
        if model is None and recipe is None and task is None:
            message = "nothing to compress: give a model or a recipe"
            raise ModelError(message)
        self.recipe = _recipe_of(recipe)
        self.device = usable_device(self.recipe.device)
        if model is None and self.recipe.model:
            weights = self.recipe.weights
            model = open_network(self.recipe.model, Path(weights).expanduser() if weights else None)
        elif model is not None:
            self.recipe = replace(self.recipe, model="", weights="")
        self._home = torch.device("cpu") if model is None else _device_of(model)
        self._said: list[str] = []
        with warnings_passed(self._said.append, shown=True):
            self._model = None if model is None else _own_copy(model)
        self._example = example
        self.task = _task_of(self.recipe, self._model, example) if task is None else task
        self._own_task = "" if task is None else _path_of(type(task))
        self._temporary = None
        if recipe is None and out is None:
            self._temporary = TemporaryFolder()
            out = self._temporary.path / "run"
        if out is not None:
            self.recipe = replace(self.recipe, out=str(out))
        self._observer = observer or SilentObserver()

    def plan(self) -> str:
        """Return the groups, the widths and the predicted cost as text; nothing is trained.

        Raises:
            RecipeError: If the recipe does not allocate.
            BudgetError: If the budget cannot be met.
        """
        state, context = self._start(), self._context()
        check_stages(self._with_settings(), state, context, None)
        return plan_table(self._stages(), state, context)

    def check(self) -> None:
        """Check everything that can be known to be wrong before a stage runs; nothing is written.

        Raises:
            CoaError: Whatever is wrong with the recipe, the task or the teacher.
        """
        check_stages(self._with_settings(), self._start(), self._context(), None)

    def run(
        self,
        *,
        resume: bool = True,
        cache: Path | str | None = None,
        processes: Processes = ALONE,
    ) -> Result:
        """Run every stage of the recipe and write the report.

        Args:
            resume: Go on where an earlier run in the same folder stopped.
            cache: Folder of finished stages that runs share: those that this run needs are taken
                from there, and those that it does are added. None for no such folder.
            processes: Those that train together, each of which calls this; the first one does
                everything else, and writes. What ``launch_processes`` returned.

        Raises:
            CoaError: If anything of what was given cannot be used.
        """
        if self._temporary is not None and processes.count > 1:
            message = f"{processes.count} processes need one run folder that all see: give out=..."
            raise RunError(message)
        started = time.time()
        shared = None if cache is None else StageCache(Path(cache))
        state, context, stages = self._start(), self._context(processes), self._with_settings()
        before = RunFolder(Path(self.recipe.out).absolute()) if resume else None
        identity = processes.broadcast(self._identity(state.teacher))
        # before the folder is made: what is wrong from the start leaves nothing behind
        with processes.leading() as leads:
            if leads:
                check_stages(stages, state, context, before, identity=identity, cache=shared)
        with self._opened(processes, resume=resume) as run:
            outcome = run_stages(stages, state, context, run, identity=identity, cache=shared)
            report = make_report(self.recipe, self.task, outcome, context, started=started)
            factory = self._factory()
            result = Result(
                student=placed(final_network(outcome.state).eval(), self._home),
                teacher=placed(outcome.state.teacher, self._home),
                report=report,
                report_path=run.path / REPORT_PAGE,
                record=student_record(
                    outcome.state,
                    self.recipe,
                    factory,
                    task=self._task_record(),
                    example=context.example,
                ),
                summary=summary_of(report),
                folder=self._temporary,
            )
            with processes.leading() as leads:
                if leads:
                    write_report(report, run.path)
                    result.save(run.path / "student")
        return result

    @contextmanager
    def _opened(self, processes: Processes, *, resume: bool) -> Iterator[RunFolder]:
        """Open the run folder: the first process alone, for all."""
        path = Path(self.recipe.out)
        with ExitStack() as stack:
            with processes.leading() as leads:
                if leads:
                    run = stack.enter_context(open_run(path))
                    if not resume:
                        run.reset()
                    write_atomic(run.path / "recipe.yaml", dump_recipe(self.recipe))
            yield RunFolder(path.absolute())

    def _stages(self) -> list[Stage]:
        types = {stage.name: stage for stage in SCHEMA.stages}
        made: list[Any] = [types[name](settings) for name, settings in self.recipe.stages.items()]
        return in_rounds(made)

    def _with_settings(self) -> list[tuple[Stage, object]]:
        return [
            (stage, decisive_settings(stage, plain(stage.settings))) for stage in self._stages()
        ]

    def _start(self) -> State:
        if self._model is None:
            return State(teacher=self.task.build_teacher().eval(), notes=self._notes())
        teacher = copied(self._model)
        if not any(parameter.requires_grad for parameter in teacher.parameters()):
            # frozen as a whole for deployment; parts frozen on purpose stay frozen
            for parameter in teacher.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
        return State(teacher=teacher, notes=self._notes())

    def _context(self, processes: Processes = ALONE) -> Context:
        choice = self.recipe.structure
        example = self.task.example_input() if self._example is None else self._example.cpu()
        if example.ndim == 0 or len(example) != 1:
            message = f"example must be one input, batch 1, got shape {tuple(example.shape)}"
            raise ModelError(message)

        @lru_cache(maxsize=1)
        def structure(teacher: nn.Module) -> ExportedStructure:
            return analyze(
                placed(copied(teacher), "cpu"),
                example,
                include=choice.include or ("*",),
                exclude=choice.exclude,
                mode=choice.mode,
                outputs=choice.outputs,
            )

        return Context(
            task=self.task,
            seed=self.recipe.seed,
            device=processes.device or self.device,
            observer=self._observer,
            structure=structure,
            example=example,
            processes=processes,
        )

    def _identity(self, teacher: nn.Module) -> Identity:
        plain, task = plain_recipe(self.recipe), self.task
        data = task.fingerprint() if isinstance(task, Fingerprinted) else {}
        read_by = task.read_by if isinstance(task, ReadByStage) else {}
        facts = {name: [value] for name, value in plain["task"].items()}
        for name, value in data.items():
            facts.setdefault(name, []).append(value)
        given = () if self._example is None else (list(self._example.shape),)
        return Identity(
            shared=digest_of(
                {name: fact for name, fact in facts.items() if name not in read_by},
                plain["structure"],
                self.recipe.seed,
                self.device,
                _digest_weights(teacher),
                type(task).__qualname__,
                *given,
            ),
            own={
                stage: digest_of(
                    {name: fact for name, fact in facts.items() if stage in read_by.get(name, ())}
                )
                for stage in set().union(*read_by.values())
            },
        )

    def _task_record(self) -> dict[str, Any]:
        if self._own_task:
            return {"class": self._own_task}
        record: dict[str, Any] = plain_recipe(self.recipe)["task"]
        return record

    def _notes(self) -> tuple[str, ...]:
        said = (*self._said, *(self.task.notes if isinstance(self.task, Noted) else ()))
        if not self._own_task:
            return said
        return (f"task: an object of {self._own_task}; the task of the recipe was not used", *said)

    def _factory(self) -> tuple[str, dict[str, Any]]:
        if self._model is None and isinstance(self.task, Rebuildable):
            factory, arguments = self.task.teacher_record()
            return factory, dict(arguments)
        if self.recipe.model:
            return self.recipe.model, {}
        kind = type(self.task.build_teacher() if self._model is None else self._model)
        return _path_of(kind), {}


def _path_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _recipe_of(recipe: Recipe | Path | str | None) -> Recipe:
    if recipe is None:
        return default_recipe()
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _device_of(model: object) -> torch.device:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def _own_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU in evaluation mode; whoever gave the model keeps it as it is."""
    if not isinstance(model, nn.Module):
        message = f"a model must be a torch.nn.Module, got {type(model).__name__}"
        raise ModelError(message)
    if isinstance(model, torch.jit.ScriptModule):
        message = f"{type(model).__name__} is compiled by TorchScript: give the module it came from"
        raise ModelError(message)
    model = unwrapped(model)
    own = copied(model)
    check_shaped(own)
    other = {p.dtype for p in own.parameters() if p.is_floating_point()} - {torch.float32}
    if other:
        listed = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in other))
        message = f"{type(model).__name__} has weights in {listed}: it is compressed in float32"
        warnings.warn(message, CoaWarning, stacklevel=3)
        own = own.float()
    return placed(own, "cpu").eval()


def _task_of(recipe: Recipe, model: nn.Module | None, example: Tensor | None) -> Task:
    """Return the task of a recipe; given the network and the example if its constructor asks."""
    task_class = SCHEMA.task_class(recipe.task.name)
    offered: dict[str, Any] = {"seed": recipe.seed, "model": model, "example": example}
    asked = inspect.signature(task_class).parameters
    given = {name: value for name, value in offered.items() if name in asked}
    task = task_class(recipe.task.settings, **given)
    if not isinstance(task, Task):
        message = f"task {recipe.task.name!r} lacks a method of coa_compress.protocols.Task"
        raise RecipeError(message)
    return task


def _digest_weights(model: nn.Module) -> str:
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
