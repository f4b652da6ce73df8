"""From a config to what a plan is made from."""

from collections.abc import Callable

from dlrm_dist.config import Config
from dlrm_dist.models.shape import model_shape
from dlrm_dist.planning.cluster import Cluster
from dlrm_dist.planning.constraints import load_rules
from dlrm_dist.planning.make import plan_model
from dlrm_dist.planning.plan_file import Inputs, PlanFile
from dlrm_dist.planning.planner import Request, inputs_of
from dlrm_dist.planning.subject import make_subject


def planner_of(config: Config, constraints: str | None) -> Callable[[Cluster], PlanFile]:
    """Makes the config's plan for a cluster.

    Raises:
        UserError: neither a dataset nor the config says how large the tables are; the constraints cannot be read.
    """
    shape, request = model_shape(config.data, config.model), request_of(config, constraints)
    return lambda cluster: plan_model(config.model, config.optimizer, shape, cluster, request)


def current_inputs(config: Config, cluster: Cluster, constraints: str | None) -> Inputs:
    """What a plan for the config would be made from now."""
    subject = make_subject(config.model, config.optimizer, model_shape(config.data, config.model))
    return inputs_of(subject, cluster, request_of(config, constraints))


def request_of(config: Config, constraints: str | None = None) -> Request:
    """What the config asks of a plan; `constraints` takes the place of `sharding.constraints`."""
    file = constraints or config.sharding.constraints
    rules = None if file is None else load_rules(file)
    return Request(
        config.train.batch_size,
        config.sharding.types,
        rules,
        None if file is None else str(file),
        config.sharding.comm_precision,
        config.train.precision,
    )
