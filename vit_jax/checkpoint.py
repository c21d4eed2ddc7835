"""Checkpoints by Orbax: asynchronous, the last n and the best k kept, verified when read, independent of `scan`.

A checkpoint holds the state's arrays as one canonical tree (layers by name, not stacked), a small JSON (`about`), and
once it is complete `checksums.json`: Orbax itself restores flipped bits without a word.
"""

import contextlib
import errno
import json
import logging
import operator
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import serialization
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from vit_jax import sharding, trees
from vit_jax.checksums import CHECKSUMS, Damaged, verify, write_checksums
from vit_jax.command import UserError
from vit_jax.trees import PyTree

Rules = Sequence[sharding.Rule]  # of the mesh: a model's `Naming.rules`

FORMAT = 1
SCORE = "score"
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, in `directory/<step>`."""

    def __init__(self, directory: Path, *, keep_last: int = 1, keep_best: int = 1, wait: bool = False) -> None:
        """`keep_best` of those saved with a score stay, and the `keep_last` newest of all.

        With `wait` each is complete when `save` returns, else it is written while training goes on.
        """
        logging.getLogger("absl").addFilter(_not_routine)
        self.directory, self.wait = directory.absolute(), wait
        policies = checkpoint_managers.preservation_policy
        keep: list[Any] = [policies.LatestN(keep_last)]
        if keep_best:
            best = policies.BestN(get_metric_fn=_score, n=keep_best, keep_checkpoints_without_metrics=False)
            keep.append(best)
        self._options = ocp.CheckpointManagerOptions(
            best_fn=_score,
            best_mode="max",
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
            single_host_load_and_broadcast=True,  # which checkpoints there are: a shared folder may show some later
        )
        self._manager = self._open()
        self._proving: threading.Thread | None = None  # computes checksums, while training goes on
        self.fault = ""  # why the last save, or the one before it, failed, of a run of one process
        self._failed = False  # whether any save did

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the highest score, of equals the last; None where none has one."""
        return best_step(self.directory)

    def save(self, state: PyTree, step: int, about: Mapping[str, Any], score: float | None = None) -> None:
        """Starts writing; returns as soon as the arrays are copied, or with `wait` once all is written.

        A step that is there already is left alone. Where it fails, as on a full disk, `fault` says so, now or at the
        next call: the former checkpoints stay.
        """
        self.fault = ""
        self.finish()
        if step in self.steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_without_empty(canonical(state))),
            about=ocp.args.JsonSave({"format": FORMAT, **about}),
        )
        with self._attempt():
            self._manager.save(step, args=items, metrics=None if score is None else {SCORE: score}, force=True)
            if jax.process_index() == 0:
                self._proving = threading.Thread(target=self._prove, args=[self._manager, step], daemon=True)
                self._proving.start()
        if self.wait:
            self.finish()

    def restore_newest(self, abstract: PyTree, mesh: Mesh, rules: Rules) -> tuple[PyTree, dict[str, Any]] | None:
        """The newest undamaged state, placed by the rules, and its `about`; None without any.

        Damaged checkpoints are set aside, with a warning.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore(step, abstract, mesh, rules)
            except Damaged as damage:
                self._set_aside(step, damage)
                _wait_for_all(f"checkpoint {step} set aside")  # looking again, nobody sees the step any more
                self._manager.close()
                self._manager = self._open()
        return None

    def restore(self, step: int, abstract: PyTree, mesh: Mesh, rules: Rules) -> tuple[PyTree, dict[str, Any]]:
        """The state saved at a step; raises `Damaged`, or `UserError` if it belongs to another model."""
        verify(self.directory / str(step))
        target = _without_empty(jax.eval_shape(lambda: canonical(_zeros(abstract))))
        try:
            saved = self._manager.item_metadata(step)["state"]
            _check_shapes(trees_of(saved), target, self.directory)
            items = ocp.args.Composite(
                state=ocp.args.StandardRestore(_placed(target, mesh, rules)), about=ocp.args.JsonRestore()
            )
            restored = self._manager.restore(step, args=items)
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:  # Orbax and TensorStore raise whatever a damaged file leads to
            if (self.directory / str(step) / CHECKSUMS).exists():  # which this is not: all bytes are what was written
                raise
            raise Damaged(_first_line(error)) from error
        if restored["about"]["format"] > FORMAT:
            raise UserError(
                f"checkpoint {self.directory / str(step)} has format {restored['about']['format']}, "
                f"this version reads up to {FORMAT}; install a newer vit_jax"
            )
        return from_canonical(restored["state"], abstract, mesh, rules), restored["about"]

    def close(self) -> None:
        """Waits until all is written."""
        self.finish()
        with self._attempt():
            self._manager.close()
        if self._failed:
            self._remove_unfinished()

    def finish(self) -> None:
        """Waits until what is being written is complete, and has its checksums."""
        with self._attempt():
            self._manager.wait_until_finished()
        if self._proving:
            self._proving.join()
            self._proving = None
        if jax.process_index() == 0:
            for step in self.steps():
                with self._attempt():
                    write_checksums(self.directory / str(step))

    def _prove(self, manager: ocp.CheckpointManager, step: int) -> None:
        """Writes the checksums of a checkpoint once it is complete; where that fails, `finish` tries again."""
        while manager.is_saving_in_progress():
            time.sleep(0.02)
        with contextlib.suppress(OSError):
            if (self.directory / str(step)).exists():
                write_checksums(self.directory / str(step))

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """A save that fails inside is noted, what it left is removed. Several processes end: they wait for each other.

        Orbax and TensorStore raise whatever a full disk leads to.
        """
        try:
            yield
        except Exception as error:
            if jax.process_count() > 1:
                raise
            self.fault = _reason(error)
            with contextlib.suppress(Exception):
                self._manager.close()
            self._failed = True
            self._remove_unfinished()
            with contextlib.suppress(OSError):
                self._manager = self._open()

    def _remove_unfinished(self) -> None:
        """Orbax's threads may write on after a failure: what they make then goes at the end, or at the next start."""
        for unfinished in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _set_aside(self, step: int, damage: Damaged) -> None:
        log.warning("checkpoint %s is damaged (%s): going back to an older one", step, damage)
        if jax.process_index() == 0:
            aside = self.directory.with_name(f"{self.directory.name}-damaged") / str(step)
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            os.replace(self.directory / str(step), aside)

    def _set_unscored_aside(self) -> None:
        """Those whose score cannot be read: Orbax reads all, and falls over it. The first process looks for all."""
        for folder in self.directory.glob("[0-9]*") if jax.process_index() == 0 else ():
            try:
                _read_score(folder)
            except Damaged as damage:
                if folder.name.isdigit():  # Orbax removes what it had not finished
                    self._set_aside(int(folder.name), damage)
        _wait_for_all("scores of checkpoints read")

    def _open(self) -> ocp.CheckpointManager:
        self._set_unscored_aside()
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.directory, options=self._options, item_handlers=handlers)


def saved_steps(directory: Path) -> list[int]:
    """The steps of a run's complete checkpoints; nobody else is asked, and nothing is written."""
    return sorted(int(folder.name) for folder in directory.glob("[0-9]*") if folder.name.isdigit())


def best_step(directory: Path) -> int | None:
    """As `Checkpoints.best_step`, of a run that is only read."""
    scored = []
    for step in saved_steps(directory):
        with contextlib.suppress(Damaged):
            scored.append((_read_score(directory / str(step)), step))
    return max((pair for pair in scored if pair[0] is not None), default=(None, None))[1]


def read_about(directory: Path) -> dict[str, Any]:
    """The `about` of the newest checkpoint in which it is whole; {} without any."""
    for step in reversed(saved_steps(directory)):
        folder = directory / str(step)
        with contextlib.suppress(Damaged, OSError, ValueError):
            verify(folder, folder / "about")
            found = json.loads((folder / "about" / "metadata").read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
    return {}


def restore_variables(
    directory: Path,
    step: int,
    abstract: PyTree,
    part: str,
    mesh: Mesh | None = None,
    rules: Rules = (),
) -> PyTree:
    """`params` and `batch_stats` of a checkpoint, placed by the rules on a mesh, or on this process's first device.

    `part` is "ema" for their averages, "task/NAME" for those in the task's own state, else "". Nothing else is read: no
    optimizer state. With a mesh all of its processes read together, without one each for itself. Raises as `restore`
    does.
    """
    folder = directory.absolute() / str(step)
    verify(folder)
    target = _without_empty(jax.eval_shape(lambda: canonical(_zeros(abstract))))
    path = part.split("/") if part else []
    item = _below(path, target)
    _check_variables(folder, path, target)
    if mesh is None:
        places = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), item)
    else:
        places = sharding.tree_shardings(item, mesh, rules)
    args = jax.tree.map(lambda leaf, place: ocp.ArrayRestoreArgs(sharding=place, dtype=leaf.dtype), item, places)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**_together(mesh)), **_together(mesh)) as reader:
            found = reader.restore(
                folder / "state", args=ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
            )
    except Exception as error:
        if (folder / CHECKSUMS).exists():
            raise
        raise Damaged(f"{folder} cannot be read: {_first_line(error)}") from error
    found = reduce(operator.getitem, path, found)
    return from_canonical(found, abstract, mesh, rules)


def _wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _together(mesh: Mesh | None) -> dict[str, Any]:
    """Orbax's option by which a process waits for no other, unless it reads for a mesh."""
    if mesh is not None or jax.process_count() == 1:
        return {}
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    return {"multiprocessing_options": alone}


def canonical(state: PyTree) -> dict[str, Any]:
    """The state as nested dicts with layers by name."""
    return trees.unstack_layers(serialization.to_state_dict(state))


def from_canonical(tree: Mapping[str, Any], abstract: PyTree, mesh: Mesh | None, rules: Rules = ()) -> PyTree:
    """The inverse of `canonical`, with the layers stacked where the abstract state stacks them."""
    template = serialization.to_state_dict(abstract)
    if any(trees.is_stacked(name) for name in trees.names(template)):
        shardings = None if mesh is None else sharding.tree_shardings(_without_empty(template), mesh, rules)
        tree = jax.jit(trees.stack_layers, out_shardings=shardings)(tree)
    return serialization.from_state_dict(abstract, _with_empty(template, tree))


def _zeros(abstract: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), abstract)


def _placed(abstract: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    places = sharding.tree_shardings(abstract, mesh, rules)
    return jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), abstract, places)


def _without_empty(tree: Any) -> Any:
    """The tree without dicts that hold no array (optax's empty states), which a checkpoint does not keep."""
    if not isinstance(tree, Mapping):
        return tree
    kept = {key: _without_empty(value) for key, value in tree.items()}
    return {key: value for key, value in kept.items() if not (isinstance(value, dict) and not value)}


def _with_empty(template: Any, tree: Any) -> Any:
    """The tree with the empty dicts of the template."""
    if not isinstance(template, Mapping):
        return tree
    return {key: _with_empty(value, tree.get(key, {})) for key, value in template.items()}


def trees_of(metadata: Any) -> PyTree:
    """Orbax's array metadata as a plain tree."""
    return getattr(metadata, "tree", metadata)


def _check_shapes(saved: PyTree, wanted: PyTree, directory: Path) -> None:
    """Raises `UserError` unless names, shapes and dtypes agree: Orbax would cast without a word."""
    have = dict(zip(trees.names(saved), jax.tree.leaves(saved), strict=True))
    want = dict(zip(trees.names(wanted), jax.tree.leaves(wanted), strict=True))
    for name in sorted(have.keys() ^ want.keys()):
        where = "lacks" if name in want else "has, but the model does not,"
        raise UserError(f"the checkpoint in {directory} {where} {name}; it belongs to another configuration")
    for name, leaf in want.items():
        if (tuple(have[name].shape), have[name].dtype) != (tuple(leaf.shape), leaf.dtype):
            raise UserError(
                f"the checkpoint in {directory} has {name} {have[name].dtype}{list(have[name].shape)}, "
                f"expected {leaf.dtype}{list(leaf.shape)}; it belongs to another configuration"
            )


def _below(path: Sequence[str], tree: PyTree) -> PyTree:
    """The tree under the names of the path."""
    return reduce(lambda inner, name: {name: inner}, reversed(path), tree)


def _check_variables(folder: Path, path: Sequence[str], wanted: PyTree) -> None:
    """Raises as `_check_shapes` for the parts of a checkpoint that are wanted, under the names of the path."""
    try:
        saved = trees_of(ocp.PyTreeCheckpointHandler().metadata(folder / "state"))
    except Exception as error:
        raise Damaged(f"{folder} cannot be read: {_first_line(error)}") from error
    found = reduce(lambda tree, name: tree.get(name, {}), path, saved)
    found = {key: found[key] for key in (found if path else wanted) if key in found}
    _check_shapes(_below(path, found), _below(path, wanted), folder.parent)


def _read_score(folder: Path) -> float | None:
    """The score of a checkpoint; None if it was saved without one."""
    path = folder / "metrics" / "metrics"
    if not path.parent.exists():
        return None
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))[SCORE])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its score cannot be read: {_first_line(error)}") from error


def _reason(error: BaseException) -> str:
    """Why something could not be written, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    known = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)]
    return next((text for text in known if text in str(error)), _first_line(error)[:200])


def _first_line(error: BaseException) -> str:
    return " ".join([type(error).__name__ + ":", *str(error).splitlines()[:1]])


def _score(metrics: Mapping[str, float]) -> float:
    return metrics[SCORE]


def _not_routine(record: logging.LogRecord) -> bool:
    """Not what Orbax tells of its work, nor the traceback of an exception that it raises, too."""
    return "orbax" not in record.pathname or record.levelno >= logging.ERROR and not record.exc_info
