"""Tables for ids without a bound: each id gets a row of its own, and the least used ones lose theirs (ZCH).

TorchRec's `MCHManagedCollisionModule` maps ids to rows. While training, each rank notes the ids that belong to its part
of the table. Every `interval` steps it counts them: new ids take empty rows, and when there are none, the rows of ids
that the policy values less; among equals those that are there stay. An id without a row uses the last row of its rank's
part, which no id ever owns. Evaluation looks ids up and changes nothing. Which rank has an id depends on the number of
ranks, so the map cannot move to another number.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

POLICIES = {"lfu": LFU_EvictionPolicy, "lru": LRU_EvictionPolicy, "distance_lfu": DistanceLFU_EvictionPolicy}
_LARGEST = (1 << 63) - 1
"""TorchRec marks an empty row by it; no id is so large."""


def mixed(ids: Tensor, _size: int = 0) -> Tensor:
    """Ids, int64 or int32 [n] from 0 to 2^63 - 2, to well mixed ones of the same range: one to one, so none collide.

    TorchRec gives each rank a range of ids, and the ids of a log fill no range evenly. Multiplications by odd numbers
    and shifts, as in splitmix64, on 63 bits; the last step has the largest number stay itself.
    """
    return _scrambled(ids.long()) ^ _AT_LARGEST


def _scrambled(ids: Tensor) -> Tensor:
    ids = (ids ^ (ids >> 32)) * 0x6A09E667F3BCC909 & _LARGEST
    ids = (ids ^ (ids >> 29)) * 0x3C6EF372FE94F82B & _LARGEST
    return ids ^ (ids >> 32)


_AT_LARGEST = int(_scrambled(torch.tensor([_LARGEST], device="cpu"))) ^ _LARGEST


class ManagedIds(MCHManagedCollisionModule):  # type: ignore[misc]
    """TorchRec's map from ids to rows, which notes every id, and whose notes can be saved.

    TorchRec sizes its notes by the first batch, and drops what does not fit in silence: all ids of the run, if that
    batch has none on a rank. It saves neither the notes nor when they were last counted.
    """

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Note the ids while training, and count them when it is time."""
        if self.training:
            self._make_room(sum(feature.values().numel() for feature in features.values()))
        return super().profile(features)

    def _make_room(self, more: int) -> None:
        """Twice as much where the notes do not fit: it follows the ids of one interval."""
        needed = self._current_history_buffer_offset + more
        if needed > self._input_history_buffer_size:
            self._resize(max(2 * needed, 1024))

    def _resize(self, size: int) -> None:
        kept = self.notes()
        self._input_history_buffer_size = size
        self._history_accumulator = torch.empty(size, dtype=torch.int64, device=self.device)
        self._history_metadata = {
            name: torch.zeros(size, dtype=torch.int64, device=self.device)
            for name, _, is_noted in self._eviction_policy.metadata_info
            if is_noted
        }
        for name, value in self._buffers_of_notes().items():
            if name in kept:
                value[: len(kept[name])] = kept[name]

    def _buffers_of_notes(self) -> dict[str, Tensor]:
        if self._input_history_buffer_size < 0:
            return {}
        return {"ids": self._history_accumulator, **self._history_metadata}

    def notes(self) -> dict[str, Tensor]:
        """What was noted since ids were last counted, by name: int64 [ids], without a copy."""
        return {name: value[: self._current_history_buffer_offset] for name, value in self._buffers_of_notes().items()}

    def steps_since_count(self) -> int:
        """Steps since ids were last counted."""
        return 0 if self._current_iter < 0 else self._current_iter - self._last_eviction_iter

    def restore(self, notes: dict[str, Tensor], steps: int) -> None:
        """Go on with `notes` and `steps_since_count` as they were saved; the map itself is loaded already."""
        count = len(notes["ids"]) if notes else 0
        self._current_history_buffer_offset = 0
        self._resize(max(2 * count, 1024))
        for name, value in self._buffers_of_notes().items():
            value[:count] = notes[name] if notes else 0
        self._current_history_buffer_offset = count
        self._current_iter = int(self._current_iter_tensor.item())
        # TorchRec counts when exactly `interval` steps are over, and a shorter interval would never be.
        self._last_eviction_iter = self._current_iter - min(steps, self._eviction_interval - 1)


class MixedTables(nn.Module):
    """Embedding bags of which some have managed collisions.

    Args:
        configs: all tables, one feature each.
        managed: names of the features whose tables are managed, one at least.
        policy: a key of `POLICIES`.
        interval: steps between two counts of the ids.
        device: of the tables; `meta` takes no memory.
    """

    def __init__(
        self,
        configs: Sequence[EmbeddingBagConfig],
        managed: Collection[str],
        policy: str,
        interval: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        chosen = [config for config in configs if set(config.feature_names) & set(managed)]
        others = [config for config in configs if config not in chosen]
        maps = {
            config.name: ManagedIds(
                zch_size=config.num_embeddings,
                device=torch.device("meta"),  # a rank makes its part anew
                eviction_policy=POLICIES[policy](),
                eviction_interval=interval,
                input_hash_size=_LARGEST,
                input_hash_func=mixed,
                name=config.name,
            )
            for config in chosen
        }
        self.plain = EmbeddingBagCollection(tables=others, device=device) if others else None
        self.managed = ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection(tables=chosen, device=device), ManagedCollisionCollection(maps, chosen)
        )
        self.join = _Join()

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        """A jagged tensor of all features to their embeddings, the managed ones last."""
        managed = self.managed(sparse)[0]
        return managed if self.plain is None else self.join(self.plain(sparse), managed)


class _Join(nn.Module):
    """A module of its own, as the pipeline traces what surrounds sharded ones."""

    def forward(self, first: KeyedTensor, second: KeyedTensor) -> KeyedTensor:
        """Both, one behind the other."""
        return KeyedTensor(
            [*first.keys(), *second.keys()],
            [*first.length_per_key(), *second.length_per_key()],
            torch.cat([first.values(), second.values()], dim=1),
        )
