"""Which tables a model has, and what a user is told who groups them wrongly."""

import pytest

from dlrm_dist.errors import UserError
from dlrm_dist.models.shape import Feature, ModelShape, model_shape
from dlrm_dist.models.tables import tables_of
from dlrm_dist.planning.subject import make_subject
from dlrm_dist.sections import DataSection, ModelSection, OptimizerSection

FEATURES = [("C1", 9), ("C2", 9), ("C3", 5), ("C4", 9)]


def names(**model):
    return [(table.name, table.rows, table.dim, table.features) for table in tables_of(ModelSection(**model), FEATURES)]


def test_a_table_a_category():
    assert names() == [(f"t_{name}", rows, 16, (name,)) for name, rows in FEATURES]


def test_groups_in_the_order_of_the_categories():
    assert names(shared_tables=("C4+C2",)) == [
        ("t_C1", 9, 16, ("C1",)),
        ("t_C2+C4", 9, 16, ("C2", "C4")),
        ("t_C3", 5, 16, ("C3",)),
    ]


def test_one_table_for_all():
    every = [("A", 7), ("B", 7)]
    for model in (ModelSection(shared_tables=("all",)), ModelSection(name="paddlerec", top_mlp=(4, 2))):
        (table,) = tables_of(model, every)
        assert (table.name, table.rows, table.features) == ("t_all", 7, ("A", "B"))


def test_widths():
    found = names(name="dcn", embedding_dims=(4, 8, 12, 4), shared_tables=("C1+C4",))
    assert [(name, dim) for name, _, dim, _ in found] == [("t_C1+C4", 4), ("t_C2", 8), ("t_C3", 12)]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"shared_tables": ("C1+C9",)}, "C9 is no category; there are C1, C2, C3, C4"),
        ({"shared_tables": ("C1+C2", "C2+C4")}, "C2 is there twice"),
        ({"shared_tables": ("C1+C1",)}, "C1 is there twice"),
        ({"shared_tables": ("C1+C3",)}, "C1 has 9 rows, C3 5.*prepare --ids hash.*model.num_embeddings"),
        ({"shared_tables": ("all",)}, "C1 has 9 rows, C3 5"),
        ({"name": "dcn", "embedding_dims": (4, 8)}, "embedding_dims has 2 values for (the )?4"),
        ({"name": "dcn", "embedding_dims": (4, 8, 4, 4), "shared_tables": ("C1+C2",)}, "C1 has 4 columns, C2 8"),
    ],
)
def test_mistakes(model, said, tmp_path):
    with pytest.raises(UserError, match=said):
        names(**model)
    with pytest.raises((UserError, ValueError), match=said):  # before any data is there
        model_shape(DataSection(path=tmp_path / "none"), ModelSection(**model, num_embeddings=(9, 9, 5, 9)))


def test_plans_know_shared_tables_widths_and_batch_normalisation():
    shape = ModelShape(3, (Feature("A", 100, 2.0), Feature("B", 100, 3.0)))
    dcn = ModelSection(name="dcn", cross_layers=2, deep_mlp=(8,), embedding_dims=(4, 4), shared_tables=("A+B",))
    subject = make_subject(dcn, OptimizerSection(sparse="adagrad"), shape)
    (table,) = subject.tables
    assert (table.name, table.features, table.ids_per_sample) == ("t_A+B", ("A", "B"), (2.0, 3.0))
    assert table.optimizer_bytes_per_row == 16
    columns = 3 + 2 * 4
    parameters = 2 * 2 * columns + (columns + 1) * 8 + columns + 8 + 1
    assert subject.dense.parameter_bytes == 4 * parameters
    products = 2 * columns + columns * 8 + columns + 8
    assert subject.dense.forward_flop_per_sample == 2 * products
    assert subject.dense.collectives == 0
    paddlerec = ModelSection(name="paddlerec", top_mlp=(8, 2))
    assert make_subject(paddlerec, OptimizerSection(), shape).dense.collectives == 2 * (2 + 2)


def test_plans_without_such_collectives_read_as_before():
    plain = make_subject(ModelSection(), OptimizerSection(), ModelShape(3, (Feature("A", 100),))).dense
    assert "collectives" not in plain.model_dump(mode="json")
