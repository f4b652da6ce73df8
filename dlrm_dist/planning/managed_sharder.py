"""TorchRec's sharder for tables with managed collisions: row-wise, and rows that get another id begin anew."""

from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from dlrm_dist.planning.sharder import Sharder


class _Sharded(ShardedManagedCollisionEmbeddingBagCollection):  # type: ignore[misc]
    """TorchRec's, but for rows that get another id.

    TorchRec resets the moments of row-wise Adagrad alone, by a kernel that CPUs have not; those of Adagrad and Adam
    would be the old id's.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._moments: dict[str, list[Tensor]] = {}
        for table, (kernel, place) in self._table_to_tbe_and_index.items():
            states = kernel.split_optimizer_states()
            self._moments[table] = list(states[int(place)]) if states else []

    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        """Draw the weights of the rows [n] of this rank's part anew, and set their moments to 0."""
        for table, rows in evictions_per_table.items():
            if rows is None:
                continue
            config = self._embedding_module._table_name_to_config[table]
            weight = self._embedding_module.embedding_bags.get_parameter(f"{table}.weight")
            with torch.no_grad():
                weight[rows] = config.init_fn(weight[rows])
                for moment in self._moments[table]:
                    moment[rows] = 0


class ManagedSharder(ManagedCollisionEmbeddingBagCollectionSharder):  # type: ignore[misc]
    """Shards tables with managed collisions; the others' sharder says the precision of the exchange."""

    def __init__(self, sharder: Sharder) -> None:
        super().__init__(ebc_sharder=sharder)

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> nn.Module:
        """This rank's part."""
        return _Sharded(
            module, params, ebc_sharder=self._e_sharder, mc_sharder=self._mc_sharder, env=env, device=device
        )


def sharders(comm_precision: str = "fp32", prefetch: bool = False, hosts: int = 1) -> list[Sharder | ManagedSharder]:
    """For all kinds of tables; see `Sharder`."""
    sharder = Sharder(comm_precision, prefetch, hosts)
    return [sharder, ManagedSharder(sharder)]
