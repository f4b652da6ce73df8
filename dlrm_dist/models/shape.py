"""What a model is built over: its dense features and, for each category, the rows of its table."""

from dataclasses import dataclass

from dlrm_dist.data.schema import DatasetInfo, read_info
from dlrm_dist.errors import UserError
from dlrm_dist.models.tables import tables_of
from dlrm_dist.sections import DataSection, ModelSection


@dataclass(frozen=True)
class Feature:
    """A category: its name, the rows of its table, the ids that a sample has in it on average."""

    name: str
    rows: int
    ids_per_sample: float = 1.0


@dataclass(frozen=True)
class ModelShape:
    """The inputs of a model."""

    num_dense: int
    features: tuple[Feature, ...]

    @property
    def named_rows(self) -> list[tuple[str, int]]:
        """(Name, rows) of each category."""
        return [(feature.name, feature.rows) for feature in self.features]


def model_shape(data: DataSection, model: ModelSection) -> ModelShape:
    """The shape by the dataset at `data.path`; without one, by `model.num_embeddings` and `model.num_dense`.

    Raises:
        UserError: neither is there; or they contradict each other.
    """
    if (data.path / "dataset.json").exists():
        return dataset_shape(read_info(data.path), model, data.expand_multi_hot)
    if model.num_embeddings is None:
        raise UserError(
            f"{data.path}: no prepared dataset here, and model.num_embeddings is not given; prepare one (dlrm-dist "
            "prepare), or give the rows of each table"
        )
    names = [f"C{i + 1}" for i in range(len(model.num_embeddings))]
    _check_managed(names, model)
    return _shape(model.num_dense, names, model.num_embeddings, model, data.expand_multi_hot)


def dataset_shape(info: DatasetInfo, model: ModelSection, expanded: tuple[int, ...] | None = None) -> ModelShape:
    """The shape by a dataset, whose tables may be given more rows than it has ids.

    Raises:
        UserError: `model.num_embeddings`, `model.multi_hot_sizes`, or the tables' groups or widths do not fit it.
    """
    names = [category.name for category in info.categories]
    _check_managed(names, model, info)
    _check_shared(model, info)
    rows = tuple(
        model.managed_rows if category.name in model.managed_collisions else category.rows
        for category in info.categories
    )
    given = model.num_embeddings or rows
    if len(given) != len(rows):
        raise UserError(
            f"model.num_embeddings has {len(given)} tables, the dataset {len(rows)} categories; give one for each"
        )
    for category, table_rows in zip(info.categories, given, strict=True):
        if table_rows < category.rows and category.name not in model.managed_collisions:
            raise UserError(
                f"model.num_embeddings gives {category.name} {table_rows} rows, but the dataset has ids up to "
                f"{category.rows - 1}; give {category.rows} or more"
            )
    return _shape(len(info.dense), names, given, model, expanded)


def _check_managed(names: list[str], model: ModelSection, info: DatasetInfo | None = None) -> None:
    """Refuse managed collisions of what is no category, and raw ids without them."""
    unknown = next((name for name in model.managed_collisions if name not in names), None)
    if unknown is not None:
        raise UserError(
            f"model.managed_collisions: there is no category {unknown}; allowed: {names[0]} to {names[-1]}; name these "
            "only"
        )
    raw = [category.name for category in info.categories if category.unbounded] if info else []
    missing = [name for name in raw if name not in model.managed_collisions]
    if missing:
        raise UserError(
            f"category {missing[0]} has raw ids, which no table of fixed ids can take; allowed: a table with managed "
            f"collisions; add --model.managed_collisions {','.join(raw)}, or prepare it with other ids"
        )


def _check_shared(model: ModelSection, info: DatasetInfo) -> None:
    """Refuse one table for categories whose ids are numbered each by a vocabulary of its own."""
    shared = [group for group in model.shared_tables if "+" in group or group == "all"]
    if info.transform.get("ids") == "vocabulary" and (shared or model.name == "paddlerec"):
        what = f"model.shared_tables has {shared[0]}" if shared else "model.name paddlerec has one table for all"
        raise UserError(
            f"{what}, but each category of the dataset has a vocabulary of its own, so one id means other values in "
            "each; allowed: ids of one space; prepare the data with them (dlrm-dist prepare --ids hash), or give each "
            "category its table"
        )


def _shape(
    num_dense: int, names: list[str], rows: tuple[int, ...], model: ModelSection, expanded: tuple[int, ...] | None
) -> ModelShape:
    sizes = model.multi_hot_sizes or expanded or (1.0,) * len(rows)
    if len(sizes) != len(rows):
        name = "model.multi_hot_sizes" if model.multi_hot_sizes else "data.expand_multi_hot"
        raise UserError(f"{name} has {len(sizes)} values for {len(rows)} categories; give one for each")
    tables_of(model, list(zip(names, rows, strict=True)))  # refuses what does not fit
    return ModelShape(num_dense, tuple(Feature(*each) for each in zip(names, rows, sizes, strict=True)))
