"""Plans and edits of plans for the tests."""

from dlrm_dist.models.shape import model_shape
from dlrm_dist.planning.constraints import SHARDING_TYPES
from dlrm_dist.planning.planner import make_plan
from dlrm_dist.planning.subject import make_subject
from dlrm_dist.sections import DataSection, OptimizerSection

ALL_TYPES = SHARDING_TYPES


def subject_of(model, optimizer=None):
    return make_subject(model, optimizer or OptimizerSection(), model_shape(DataSection(path="nowhere"), model))


def plan_for(model, cluster, request, optimizer=None):
    return make_plan(subject_of(model, optimizer), cluster, request)


def placed(plan, table):
    return dict(plan.placed())[table]


def with_table(plan, table, **changes):
    """The plan with some fields of one table's sharding changed."""
    modules = {
        path: {
            name: sharding.model_copy(update=changes) if name == table else sharding
            for name, sharding in module.items()
        }
        for path, module in plan.modules.items()
    }
    return plan.model_copy(update={"modules": modules})
