"""The model card of an export: what it is, what it was trained on, how good it is, how to use it."""

from dlrm_dist.checkpoint.saved_run import SavedRun
from dlrm_dist.data.schema import DatasetInfo
from dlrm_dist.models.shape import dataset_shape
from dlrm_dist.models.tables import tables_of
from dlrm_dist.serving.bundle import Bundle

_CARD = """# {run}, step {step:,}

{model}, tables of {features} categories, {rows:,} rows x {width} in {embeddings}; the network in fp32.
`model.pt2` is {program}. It takes float32 [B, {num_dense}], the ids of all categories one behind another, and int32
[{features}, B], how many ids each row has; it gives probabilities, float32 [B].{managed} `dlrm_dist.Predictor` does the
rest:

```python
import json, dlrm_dist
request = json.load(open("example.json"))
dlrm_dist.Predictor(".").predict(request["rows"])    # as in request["probabilities"]
```

## Data
{data}

## Metrics
Of the run's validation at this step: {scores}.

Against the trained model, over {check.rows:,} rows: probabilities differ by at most {check.difference:.2g} (allowed
{check.tolerance:g}){auc}.

## Versions
{versions}. An export is a program: load only one whose origin you trust. `export.json` has a SHA-256 of each file.
"""
_MANAGED = " Ids of {} are rows there already, by `managed.safetensors`: their tables had managed collisions."
_PROGRAMS = {"pt2": "what torch.export saves, for CPU", "aoti": "compiled ahead of time (AOTInductor) for this CPU"}


def card(saved: SavedRun, bundle: Bundle) -> str:
    """The card, Markdown."""
    model, check = saved.config.model, bundle.check
    shape = dataset_shape(saved.info, model, saved.config.data.expand_multi_hot)
    auc = ""
    if check.auc is not None:
        auc = f"; its AUC is {check.auc:.5f}, and differs by {check.auc_change:.2g} (allowed {check.auc_tolerance:g})"
    return _CARD.format(
        run=bundle.run,
        step=bundle.step,
        model=model.name,
        features=len(saved.info.categories),
        rows=sum(table.rows for table in tables_of(model, shape.named_rows)),
        width=model.embedding_dim,
        embeddings=bundle.embeddings,
        program=_PROGRAMS[bundle.program],
        num_dense=len(saved.info.dense),
        managed=_MANAGED.format(", ".join(model.managed_collisions)) if model.managed_collisions else "",
        data=_data(saved.info),
        scores=", ".join(f"{key} {value:.5g}" for key, value in bundle.scores.items()) or "it was not scored then",
        check=check,
        auc=auc,
        versions=", ".join(f"{name} {value}" for name, value in bundle.versions.items()),
    )


def _data(info: DatasetInfo) -> str:
    made = info.transform
    lines = [f"- {name}: {split.rows:,} rows, {split.clicks:,} clicks" for name, split in info.splits.items()]
    how = ", ".join(f"{key} {made[key]}" for key in ("format", "dense", "ids", "bins", "min_count") if key in made)
    sources = [name for group in made.get("sources", {}).values() for name in group]
    lines += [f"- {len(info.dense)} numbers, {len(info.categories)} categories; {how or 'of unknown origin'}"]
    return "\n".join([*lines, *([f"- from {', '.join(sources[:5])}"] if sources else [])])
