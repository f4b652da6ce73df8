"""The project's verbs as torchx components `dlrm.*`, for local_cwd, slurm, kubernetes and aws_batch.

Each asks for the hosts that its config needs and is checked before it is sent; a mistake is one line, exit code 2.
torchx lists this module's functions as components, so it imports modules, not functions; those that import torch inside
the functions, for the other components do not need it.
"""

from typing import Any

from torchx.specs import AppDef

from launch import options


@options.component(options.TrainOptions, "`--`, and then those of launch/train.py")
def train(*arguments: str, **given: Any) -> AppDef:
    """Trains and scores a model: dlrm.train -j 1x8 --config C.toml -- --train.epochs 1."""
    from launch import jobs, verbs

    wanted = options.TrainOptions(**given)
    return jobs.of_ranks(verbs.Training, wanted.arguments(arguments), wanted)


@options.component(options.RankOptions, "those of `dlrm-dist evaluate`")
def evaluate(*arguments: str, **given: Any) -> AppDef:
    """Scores a trained run on a dataset: dlrm.evaluate -j 1x8 runs/NAME DATASET."""
    from launch import jobs, verbs

    return jobs.of_ranks(verbs.Evaluation, arguments, options.RankOptions(**given))


@options.component(options.RankOptions, "`--`, and then those of `dlrm-dist doctor`")
def doctor(*arguments: str, **given: Any) -> AppDef:
    """Checks the hosts and the links between them with a rank on each device: dlrm.doctor --cluster h100:2x8."""
    from launch import jobs, verbs

    return jobs.of_ranks(verbs.Diagnosis, arguments, options.RankOptions(**given))


@options.component(options.Options, "those of `dlrm-dist prepare`")
def prepare(*arguments: str, **given: Any) -> AppDef:
    """Makes a dataset of raw clicks, in one process: dlrm.prepare train.txt data/mine --format kaggle."""
    from launch import jobs

    return jobs.of_prepare(arguments, options.Options(**given))
