"""Which tables a model has: one a category, or one for several that share an id space."""

from collections.abc import Sequence
from dataclasses import dataclass

from dlrm_dist.errors import UserError
from dlrm_dist.sections import ModelSection


@dataclass(frozen=True)
class ModelTable:
    """A table's name, rows and width, and the categories that look up in it."""

    name: str
    rows: int
    dim: int
    features: tuple[str, ...]


def tables_of(model: ModelSection, features: Sequence[tuple[str, int]]) -> tuple[ModelTable, ...]:
    """The tables in the order of their first categories: `t_C1`; `t_C1+C2` of a group; `t_all` of all.

    Args:
        model: the config's section.
        features: (name, rows) of each category.

    Raises:
        UserError: a group names what is no category, or one twice, or such as differ in rows or width;
            it has managed collisions; `model.embedding_dims` has another number of values.
    """
    rows = dict(features)
    dims = dict(zip(rows, _dims(model, len(rows)), strict=True))
    groups = _groups(model, tuple(rows))
    _refuse_managed(groups, model)
    return tuple(
        ModelTable(_name(group, model), _shared("rows", group, rows), _shared("columns", group, dims), group)
        for group in groups
    )


def _refuse_managed(groups: list[tuple[str, ...]], model: ModelSection) -> None:
    """A table with managed collisions has one category: ids of others would be rows already."""
    for group in groups:
        managed = [name for name in group if name in model.managed_collisions]
        if managed and len(group) > 1:
            raise UserError(
                f"model.managed_collisions: {managed[0]} shares its table with {len(group) - 1} other categories; give "
                "it one of its own (model.shared_tables; model.name paddlerec has one table for all)"
            )


def _dims(model: ModelSection, features: int) -> tuple[int, ...]:
    if model.embedding_dims is None:
        return (model.embedding_dim,) * features
    if len(model.embedding_dims) != features:
        raise UserError(
            f"model.embedding_dims has {len(model.embedding_dims)} values for {features} categories; give one for each"
        )
    return model.embedding_dims


def _groups(model: ModelSection, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All categories, each in one group, in their own order."""
    if _is_one_table(model):
        return [names]
    group_of: dict[str, tuple[str, ...]] = {}
    for group in (text.split("+") for text in model.shared_tables):
        for name in group:
            if name not in names:
                raise UserError(f"model.shared_tables: {name} is no category; there are {', '.join(names)}")
            if name in group_of:
                raise UserError(f"model.shared_tables: {name} is there twice; a category has one table")
            group_of[name] = tuple(each for each in names if each in group)
    return list(dict.fromkeys(group_of.get(name, (name,)) for name in names))


def _is_one_table(model: ModelSection) -> bool:
    return model.name == "paddlerec" or model.shared_tables == ("all",)


def _name(group: tuple[str, ...], model: ModelSection) -> str:
    return "t_all" if _is_one_table(model) else f"t_{'+'.join(group)}"


def _shared(what: str, group: tuple[str, ...], values: dict[str, int]) -> int:
    first = group[0]
    for name in group:
        if values[name] != values[first]:
            key = "model.num_embeddings" if what == "rows" else "model.embedding_dims"
            raise UserError(
                f"model.shared_tables: {first} has {values[first]} {what}, {name} {values[name]}; categories share a "
                f"table only where the same id means the same: prepare them so (dlrm-dist prepare --ids hash), or "
                f"give them the same {what} by {key}"
            )
    return values[first]
