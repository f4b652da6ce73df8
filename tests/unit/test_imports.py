"""Imports go one way, and what is distributed stays where it belongs; read from the source, nothing is run."""

import ast
from graphlib import TopologicalSorter

from tests.helpers import ROOT

LAYERS = [
    {"errors", "interruption", "whereabouts", "cgroups", "place", "plain"},
    {"sections", "packages", "pages", "progress", "cores", "memory", "tries", "speaking"},
    {"config"},
    {"data"},
    {"models"},
    {"optim", "learning_rate", "monitor", "cpu_adagrad", "lost_ranks", "listeners", "local_ranks", "waiting"},
    {"between_hosts"},
    {"runtime"},
    {"pace", "pulse"},
    {"ranking"},
    {"metrics"},
    {"planning"},
    {"runs"},
    {"shard", "evaluate", "runfolder", "tensorboard", "out_of_memory", "step_split"},
    {"pipeline"},
    {"checkpoint"},
    {"epochs", "mlperf_log"},
    {"meter"},
    {"preflight", "loop"},
    {"train"},
    {"trained"},
    {"scoring", "serving", "verify", "doctor"},
    {"plan_verbs", "evaluate_verb", "verify_verb", "doctor_verb", "checkpoint_verbs", "runs_verbs", "serving_verbs"},
    {"inspect_verb"},
    {"cli"},
]
"""Parts of the package, lowest first: a part imports itself and parts of lower layers."""


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path.read_text() for path in sorted((ROOT / "dlrm_dist").rglob("*.py"))}


def imports_of(source, top_level_only=False):
    """Full names of what is imported, in functions too: `from a import b` is a.b if that is a module here, and a."""
    found = set()
    tree = ast.parse(source)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES or node.module == "torch" else node.module)
    return found


def importers(name):
    """Modules of the package that import `name` or something below it."""
    return {
        module
        for module, source in MODULES.items()
        if any(each == name or each.startswith(f"{name}.") for each in imports_of(source))
    }


def part(module):
    return module.split(".")[1] if "." in module else ""


def inner(module, **options):
    return {each for each in imports_of(MODULES[module], **options) if each in MODULES}


def test_imports_are_found():
    source = (
        "import torch.distributed as dist\nfrom torch import distributed\ndef f():\n    from dlrm_dist import optim\n"
    )
    assert imports_of(source) == {"torch.distributed", "dlrm_dist.optim"}
    assert imports_of(source, top_level_only=True) == {"torch.distributed"}
    assert {"dlrm_dist.shard", "dlrm_dist.data.order", "dlrm_dist"} <= set(MODULES)


def test_every_part_has_a_layer():
    assert {part(module) for module in MODULES} - {""} == set().union(*LAYERS)


def test_imports_go_one_way():
    layer = {name: number for number, names in enumerate(LAYERS) for name in names} | {"": -1}
    upward = [
        f"{module} imports {other}"
        for module in MODULES
        for other in inner(module)
        if part(other) != part(module) and layer[part(other)] >= layer[part(module)]
    ]
    assert upward == []


def test_there_are_no_cycles():
    order = TopologicalSorter({module: inner(module) - {module} for module in MODULES}).static_order()
    assert set(order) == set(MODULES)  # a cycle raises on the way


def test_the_package_imports_neither_launch_nor_tests():
    assert importers("launch") == importers("tests") == set()


def test_models_know_nothing_of_distribution():
    for name in ("torch.distributed", "torchrec.distributed", "dlrm_dist.planning", "dlrm_dist.shard"):
        assert {module for module in importers(name) if part(module) in ("models", "data")} == set()


def test_the_parallel_wrapper_is_used_in_one_place():
    names = {"DistributedModelParallel", "DMPCollection", "DistributedDataParallel", "FullyShardedDataParallel"}
    made = {
        module
        for module, source in MODULES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name | ast.Attribute)
        and (node.id if isinstance(node, ast.Name) else node.attr) in names
    }
    assert made == {"dlrm_dist.shard"}


def test_torchrecs_planner_is_used_in_planning_and_shard_only():
    users = importers("torchrec.distributed.planner")
    assert "dlrm_dist.planning.planner" in users
    assert {module for module in users if part(module) not in ("planning", "shard")} == set()


def test_commands_about_data_and_plans_start_without_torch():
    """`dlrm-dist` answers at once; `prepare` and what only reads a plan need no PyTorch: nothing they import does."""
    starts = [
        "cli",
        "config",
        "data.prepare",
        "data.synthetic",
        "planning.explain",
        "planning.page",
        "planning.check",
        "checkpoint.saved_run",
        "runs.report",
    ]
    for start in (f"dlrm_dist.{name}" for name in starts):
        seen, waiting = set(), [start]
        while waiting:
            module = waiting.pop()
            seen.add(module)
            waiting += inner(module, top_level_only=True) - seen
            outer = {name.split(".")[0] for name in imports_of(MODULES[module], top_level_only=True)}
            assert not outer & {"torch", "torchrec", "fbgemm_gpu"}, f"{start} imports torch through {module}"
