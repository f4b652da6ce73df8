"""A trained run's model, planned for the ranks at hand, with the weights of a checkpoint and no optimizer state."""

from dataclasses import dataclass
from pathlib import Path

from dlrm_dist import out_of_memory
from dlrm_dist.checkpoint.folder import step_of
from dlrm_dist.checkpoint.keeper import shared_damage
from dlrm_dist.checkpoint.saved_run import SavedRun
from dlrm_dist.checkpoint.state import load_weights
from dlrm_dist.config import Config
from dlrm_dist.errors import UserError
from dlrm_dist.models.shape import dataset_shape
from dlrm_dist.planning.for_run import machine_at_hand
from dlrm_dist.planning.inputs import request_of
from dlrm_dist.planning.make import plan_model
from dlrm_dist.planning.plan_file import PlanFile
from dlrm_dist.runtime import Session, arithmetic
from dlrm_dist.sections import OptimizerSection, ShardingSection
from dlrm_dist.shard import ShardedTask
from dlrm_dist.train import build


@dataclass(frozen=True)
class TrainedRun:
    """A run whose model is loaded.

    Attributes:
        saved: the run: `config`, `info` (its columns), and the checkpoint that was loaded first.
        plan: where the tables lie here.
        sharded: the task; `sharded.model(batch)` gives the loss and predictions. It is in evaluation mode.
    """

    saved: SavedRun
    plan: PlanFile
    sharded: ShardedTask

    def load(self, checkpoint: Path, here: Session) -> None:
        """Set the weights of a checkpoint of the same run. Collective.

        Raises:
            UserError: it is damaged.
        """
        damage = shared_damage(checkpoint, here)
        if damage:
            steps = ", ".join(str(step_of(each)) for each in self.saved.checkpoints)
            raise UserError(f"{checkpoint}: {damage}; choose another: --checkpoint STEP, here {steps}")
        load_weights(self.sharded, checkpoint)


def load_trained(saved: SavedRun, here: Session) -> TrainedRun:
    """Build the run's model for the ranks at hand and load the chosen checkpoint's weights. Collective.

    Raises:
        UserError: the checkpoint is damaged; the tables do not fit.
    """
    config = _without_training(saved.config)
    shape = dataset_shape(saved.info, config.model, config.data.expand_multi_hot)
    machine, _ = machine_at_hand(config.sharding, here.device, here.world_size, here.local_world_size)
    plan = here.from_main(lambda: plan_model(config.model, config.optimizer, shape, machine, request_of(config)))
    arithmetic(config.train.precision, here.device)
    with out_of_memory.named(here.global_rank, plan):
        sharded = build(config, shape, plan, here, initialise=False)
    trained = TrainedRun(saved, plan, sharded)
    trained.load(saved.checkpoint, here)
    sharded.model.eval()
    return trained


def _without_training(config: Config) -> Config:
    """SGD has no state, so that the tables take their weights' memory; ranks and exchange are of this machine.

    Embeddings travel in fp32, whatever they were trained with.
    """
    return config.model_copy(
        update={
            "optimizer": OptimizerSection(sparse="sgd", dense="sgd"),
            "sharding": ShardingSection(types=config.sharding.types),
        }
    )
