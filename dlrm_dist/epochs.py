"""The epochs of a run: which rows each step trains on, and how many steps there are."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from dlrm_dist.checkpoint.keeper import Position
from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.order import EpochOrder
from dlrm_dist.sections import TrainSection


@dataclass(frozen=True)
class Epochs:
    """Which rows each step of the whole run trains on: the orders of its epochs, and the number of steps."""

    orders: tuple[EpochOrder, ...]
    total_steps: int

    @staticmethod
    def of(section: TrainSection, reader: SplitReader, drop_last: bool) -> "Epochs":
        """Those of a run over the reader's split."""
        orders = tuple(
            reader.order(section.batch_size, section.seed, epoch, drop_last) for epoch in range(section.epochs)
        )
        steps = sum(order.num_steps for order in orders)
        return Epochs(orders, min(steps, section.max_steps or steps))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; all epochs have equally many."""
        return self.orders[0].num_steps

    def rows_after(self, step: int) -> int:
        """Global rows trained on when `step` steps are done."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        rows_per_epoch = self.orders[0].step_bounds(self.steps_per_epoch - 1)[1]
        return epochs * rows_per_epoch + (self.orders[0].step_bounds(rest - 1)[1] if rest else 0)

    def position(self, step: int) -> Position:
        """Where the run is when `step` steps are done."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        return Position(step, epoch, self.rows_after(step), ends_epoch=rest == 0)

    def batches(self, reader: SplitReader, done: int = 0) -> Iterator[ClickBatch]:
        """The rank's batches of all epochs behind `done` steps, as one stream: it is not drained between epochs."""
        epoch, first = divmod(done, self.steps_per_epoch)
        orders = enumerate(self.orders[epoch:])
        stream = (batch for number, order in orders for batch in reader.batches(order, 0 if number else first))
        return islice(stream, self.total_steps - done)
