"""The trained model over some rows, to compare an export with: plain PyTorch in fp32, of each table what they look up.

It shares neither the lookup nor the arithmetic of an export, and takes no more memory than its rows' ids need.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_dist.models.click_model import ClickModel
from dlrm_dist.serving.bags import collection_of
from dlrm_dist.serving.program import Inputs
from dlrm_dist.serving.weights import Table


class Reference:
    """A model whose tables hold the rows that some inputs look up.

    Args:
        model: with its trained network, and its tables on the meta device; it is taken over.
        features: the categories, in the order of the inputs.
        inputs: all that it will score.
    """

    def __init__(self, model: ClickModel, features: Sequence[str], inputs: Sequence[Inputs]) -> None:
        self._model, self._features, self._inputs = model, list(features), inputs
        self._used: dict[str, Tensor] = {}
        """The ids of each feature that are looked up, sorted; features of one table share them."""
        for table in collection_of(model).embedding_bag_configs():
            ids = [self._ids(each, feature) for each in inputs for feature in table.feature_names]
            used = torch.cat(ids).unique()
            self._used |= {name: used for name in table.feature_names}

    def take(self, table: Table) -> None:
        """Keep a table's rows that are looked up."""
        collection = collection_of(self._model)
        feature = next(each.feature_names[0] for each in collection.embedding_bag_configs() if each.name == table.name)
        rows = table.weight[self._used[feature]].float()
        collection.embedding_bags[table.name].weight = nn.Parameter(rows, requires_grad=False)

    def probabilities(self) -> Tensor:
        """Of all inputs' rows, float32 [rows]."""
        with torch.no_grad():
            found = [self._model(each.dense, self._jagged(each)).float().sigmoid() for each in self._inputs]
        return torch.cat(found)

    def _ids(self, inputs: Inputs, feature: str) -> Tensor:
        """A feature's ids, int64."""
        ends = [0, *inputs.lengths.sum(dim=1).cumsum(0).tolist()]
        place = self._features.index(feature)
        return inputs.values[ends[place] : ends[place + 1]].long()

    def _jagged(self, inputs: Inputs) -> KeyedJaggedTensor:
        """The inputs' ids, renumbered to the rows that are kept."""
        values = [torch.searchsorted(self._used[each], self._ids(inputs, each)) for each in self._features]
        return KeyedJaggedTensor(keys=self._features, values=torch.cat(values), lengths=inputs.lengths.flatten())
