"""How `frontier.py` trains each task, and what was chosen there for each method.

CIFAR-10 and Tiny Shakespeare have small models and short trainings, so that a CPU makes a hundred
of them. What a method has besides its knob was chosen among the values of `trials`, which
`frontier.py --trials` runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import models


@dataclass(frozen=True)
class Setting:
    """The size of a task, and the choices for its methods.

    Attributes:
        strengths: For methods by name, the least and the largest strength of the grid.
        one_shot_scope: Whether one-shot pruning ranks the magnitudes over the whole model or in
            each layer.
        tfmot_steps: The shares of the steps after which TF-MOT begins to prune and has pruned all.
        cut: Magnitude up to which the weights that coupled Lp trained are made zero, in learning
            rates of the first step: a weight that the penalty holds at 0 swings around it by some.
        trials: By method, what was tried for its choice.
        sparsity: Share of zeros of the trials of methods that are told one.
        loading: Arguments of the loading of the task.
        replaced: Attributes of the task that differ from those it is loaded with.
    """

    strengths: Mapping[str, tuple[float, float]]
    one_shot_scope: Literal["global", "layer"]
    tfmot_steps: tuple[float, float]
    cut: float
    trials: Mapping[str, Sequence[Any]]
    sparsity: float
    loading: Mapping[str, Any] = field(default_factory=dict)
    replaced: Mapping[str, Any] = field(default_factory=dict)


# Schedules of TF-MOT that begin after some training.
LATE = [(0.1, 0.35), (0.2, 0.5), (0.2, 0.8)]
# The strengths gave 82 to 91 % and about 99 % zeros or more with seed 0.
SETTINGS = {
    "digits": Setting(
        strengths={
            "lp_adamw_0.5": (0.008, 0.1),
            "lp_adamw_0.8": (0.025, 0.25),
            "lp_adamw_1": (0.08, 0.4),
            "proximal_l1": (0.12, 0.55),
            "coupled_lp": (2e-5, 1.5e-3),
        },
        one_shot_scope="global",
        tfmot_steps=(0.0, 0.8),
        cut=5,
        trials={
            "one_shot": ("global", "layer"),
            "tfmot": [(0.0, 0.5), (0.0, 0.8), (0.0, 1.0), *LATE],
            "coupled_lp": (2, 5, 10, 20),
        },
        sparsity=0.99,
    ),
    "cifar10": Setting(
        strengths={
            "lp_adamw_0.5": (0.035, 0.15),
            "lp_adamw_0.8": (0.1, 0.3),
            "lp_adamw_1": (0.3, 0.6),
            "proximal_l1": (0.62, 0.95),
            "coupled_lp": (1e-3, 1.3e-2),
        },
        one_shot_scope="global",
        tfmot_steps=(0.0, 0.25),
        cut=1,
        trials={
            "one_shot": ("global", "layer"),
            "tfmot": [(0.0, 0.1), (0.0, 0.25), (0.0, 0.5), (0.0, 0.8), *LATE],
            "coupled_lp": (0.5, 1, 2, 5),
        },
        sparsity=0.95,
        loading={"train": 35_000, "val": 10_000},
        replaced={
            "make_model": models.small_resnet,
            "batch_size": 64,
            "epochs": 4,
            "epochs_per_pass": 4,
            "last_share": 0.01,
        },
    ),
    "shakespeare": Setting(
        strengths={
            "lp_adamw_0.5": (0.032, 0.11),
            "lp_adamw_0.8": (0.08, 0.25),
            "lp_adamw_1": (0.19, 0.5),
            "proximal_l1": (0.3, 0.8),
            "coupled_lp": (1.6e-4, 1.5e-3),
        },
        one_shot_scope="layer",
        tfmot_steps=(0.1, 0.35),
        cut=2,
        trials={
            "one_shot": ("global", "layer"),
            "tfmot": [(0.0, 0.25), (0.0, 0.5), (0.0, 0.8), (0.05, 0.4), *LATE],
            "coupled_lp": (1, 2, 5, 10),
        },
        sparsity=0.95,
        loading={"depth": 2, "width": 64},
        replaced={
            "batch_size": 8,
            "epochs": 4,
            "learning_rate": 2e-3,
            "last_share": 0.01,
            "jit_compile": False,  # Compiling took 10 of 50 seconds, and the steps as long.
        },
    ),
}
