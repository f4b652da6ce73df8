"""TorchRec's sharder for our tables: every sharding type on every device, the exchange in a chosen precision."""

from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import CommOp, ShardingType

from dlrm_dist.planning import exchange

_PRECISIONS = {
    "fp16": QCommsConfig(forward_precision=CommType.FP16, backward_precision=CommType.BF16),
    "bf16": QCommsConfig(forward_precision=CommType.BF16, backward_precision=CommType.BF16),
    "int8": QCommsConfig(forward_precision=CommType.INT8, backward_precision=CommType.BF16),
}
"""Gradients go in bf16: they are divided by the global batch, and fp16 would lose the small ones."""


class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """All seven sharding types on every device: the stock sharder offers four on CPU, though all seven train there.

    Args:
        comm_precision: of embeddings and their gradients between ranks: fp32, fp16, bf16 or int8; with
            `_between_hosts` only where an exchange is one between hosts: of whole tables, and the second stage of
            table-row-wise ones; the row-wise reduce-scatter, which is one over all ranks, stays in fp32.
        hosts: number of hosts.
        prefetch: tables behind a cache on the GPU are fetched ahead, by a pipeline that does so.
    """

    def __init__(self, comm_precision: str = "fp32", prefetch: bool = False, hosts: int = 1) -> None:
        # Without a device: told that it is the CPU, TorchRec would put fp16 in the place of bf16 with a warning in its
        # log, though gloo carries bf16.
        precision, only_between_hosts = exchange.split(comm_precision)
        codecs = None
        if precision != "fp32" and not (only_between_hosts and hosts == 1):
            exchanges = [CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL] if only_between_hosts else None
            codecs = get_qcomm_codecs_registry(_PRECISIONS[precision], exchanges)
        super().__init__(fused_params={"prefetch_pipeline": True} if prefetch else None, qcomm_codecs_registry=codecs)

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Every type that TorchRec knows."""
        return [kind.value for kind in ShardingType]
