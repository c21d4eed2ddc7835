"""Probes of a backbone: it is frozen, the training images teach without augmentation, another split is asked."""

import dataclasses
from collections.abc import Sequence

from vit_jax import models, step
from vit_jax.config import Config
from vit_jax.data import Loader
from vit_jax.metrics import Labelled, probes
from vit_jax.tasks import FrozenFeatures, Gathered, Parts
from vit_jax.train.evaluation import evaluate_split, evaluation_batch_size
from vit_jax.train.experiment import Experiment, compile_eval_step
from vit_jax.trees import PyTree

FIELDS = ("image", "label")


class Prober:
    """The probes of one backbone; its variables may change. `variables`: their shapes will do."""

    def __init__(self, config: Config, parts: Parts, train: Loader, variables: PyTree, names: Sequence[str]) -> None:
        self.config, self.names, self.mesh = config, names, train.mesh
        self.task = FrozenFeatures(parts)
        self.train = dataclasses.replace(train, on_device=False, crop=None, fields=FIELDS)
        self.batch_size = evaluation_batch_size(config, train.mesh)
        rules = models.naming_of(self.task.module).rules
        self.step = compile_eval_step(step.make_eval_step(self.task), variables, train.mesh, rules)

    @classmethod
    def of(cls, experiment: Experiment) -> "Prober":
        """Those of a run, as its configuration says."""
        config, task = experiment.config, experiment.task
        variables = step.evaluation_variables(experiment.abstract_state, task.evaluated)
        return cls(config, task.parts, experiment.loader, variables, config.evaluate.probe)

    def measure(self, variables: PyTree, loader: Loader) -> tuple[dict[str, float], list[str]]:
        """The metrics of the probes on the images of `loader`, and warnings of features that have collapsed."""
        train, asked = (self._features(variables, images) for images in (self.train, loader))
        found = probes.measure(
            self.names,
            train,
            asked,
            self.mesh,
            neighbours=self.config.evaluate.knn_neighbours,
            temperature=self.config.evaluate.knn_temperature,
        )
        return found, probes.warnings(found, asked.labels)

    def _features(self, variables: PyTree, loader: Loader) -> Labelled:
        labelled = dataclasses.replace(loader, fields=FIELDS)
        gathered = evaluate_split(self.step, variables, labelled, self.batch_size, self.task)
        assert isinstance(gathered, Gathered)
        return gathered.found
