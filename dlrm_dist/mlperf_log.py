"""MLPerf's log lines of a run, by the rules of MLPerf training: real counts always, written by its own library.

The keys are those that the public checker (package mlperf-logging, closed division, DLRM-DCNv2) asks for. A run that is
continued logs on into the same file, in which the checker then finds two starts: MLPerf knows no continued runs.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dlrm_dist import learning_rate
from dlrm_dist.config import Config
from dlrm_dist.data.schema import DatasetInfo
from dlrm_dist.errors import UserError
from dlrm_dist.listeners import Line, Listener

_PRECISIONS = {"bf16": "bfloat16"}
"""MLPerf's name of ours, where they differ."""


def check(config: Config) -> None:
    """Refuse what cannot be logged.

    Raises:
        UserError: the package is not there; the model is none of MLPerf's.
    """
    if not config.train.mlperf_log:
        return
    if find_spec("mlperf_logging") is None:
        raise UserError(
            "train.mlperf_log needs the package mlperf-logging, which is not installed: pip install 'dlrm-dist[mlperf]'"
        )
    if config.model.name != "dlrm_dcnv2":
        raise UserError(
            f"train.mlperf_log is for MLPerf's model, model.name dlrm_dcnv2, and this one is {config.model.name}; "
            "choose that model, or leave the log away"
        )


class MlperfLog(Listener):
    """Writes the lines to a file; the run's set-up began at `began`, seconds since 1970."""

    def __init__(self, path: Path, config: Config, info: DatasetInfo, began: float) -> None:
        from mlperf_logging.mllog.mllog import MLLogger

        logger = logging.Logger(str(path))  # none of the process's: nothing else hears of it
        self._file = logging.FileHandler(path)
        logger.addHandler(self._file)
        self._log = MLLogger(logger, default_namespace="")
        self._train_samples = info.splits["train"].rows
        self._eval_samples = info.splits[config.eval.split].rows
        self._config = config
        self._last: Line = {}
        self._log.event("cache_clear", True, time_ms=int(began * 1e3))
        self._log.start("init_start", time_ms=int(began * 1e3))

    def begins(self, done: int, total: int) -> None:
        """Set-up ends, and the clock starts."""
        self._total = total
        for key, value in self._facts(total).items():
            self._log.event(key, value)
        self._log.end("init_stop")
        self._log.start("run_start")
        self._log.start("block_start", metadata=self._block_at(0))

    def scoring(self, line: Line) -> None:
        """Training pauses for an evaluation."""
        self._log.end("block_stop", metadata=self._at(line))
        self._log.start("eval_start", metadata=self._at(line))

    def scored(self, line: Line) -> None:
        """AUC, and training goes on unless the run is at its end, at its target, or has not improved for too long."""
        self._last = line
        self._log.event("eval_accuracy", line["auc"], metadata=self._at(line))
        self._log.end("eval_stop", metadata=self._at(line))
        patience = self._config.schedule.stop_patience
        is_tired = patience is not None and line["stale"] >= patience
        if line["step"] < self._total and not self._has_reached_target() and not is_tired:
            self._log.start("block_start", metadata=self._block_at(line["samples"]))

    def ends(self, result: Line | None) -> None:
        """The clock stops. A run is a success that has reached its target, or, without one, its last step."""
        at = self._at(self._last) if self._last else {}
        if result:
            self._log.event("trained_samples", result["samples"], metadata=at)
        is_done = not self._config.schedule.target_auc and self._last.get("step") == self._total
        status = "success" if result and (is_done or self._has_reached_target()) else "aborted"
        self._log.end("run_stop", metadata={**at, "status": status})
        self._file.close()

    def _has_reached_target(self) -> bool:
        target = self._config.schedule.target_auc
        return target is not None and self._last.get("auc", 0.0) >= target

    def _facts(self, total: int) -> dict[str, Any]:
        """What is known before a run of so many steps. What differs between tables and layers is joined by a plus."""
        config, train, optimizer = self._config, self._config.train, self._config.optimizer
        names = dict.fromkeys((optimizer.sparse, optimizer.dense))
        given = optimizer.sparse_learning_rate, optimizer.dense_learning_rate
        rates = [*dict.fromkeys(train.learning_rate if rate is None else rate for rate in given)]
        decay_start, decay_steps = learning_rate.decay_of(config.schedule, total)
        return {
            "submission_benchmark": "dlrm_dcnv2",
            "submission_org": config.mlperf.organization,
            "submission_division": config.mlperf.division,
            "submission_status": config.mlperf.status,
            "submission_platform": config.mlperf.platform,
            "seed": train.seed,
            "global_batch_size": train.batch_size,
            "gradient_accumulation_steps": config.train.micro_batches,
            "train_samples": self._train_samples,
            "eval_samples": self._eval_samples,
            "opt_name": "+".join(names),
            "opt_base_learning_rate": rates[0] if len(rates) == 1 else "+".join(map(str, rates)),
            "opt_adagrad_learning_rate_decay": 0,  # Adagrad's own, which there is none of here
            "opt_adagrad_initial_accumulator_value": 0,
            "opt_adagrad_epsilon": optimizer.eps,
            "opt_weight_decay": max(
                optimizer.sparse_weight_decay, optimizer.table_weight_decay, optimizer.dense_weight_decay
            ),
            "opt_learning_rate_warmup_steps": config.schedule.warmup_steps,
            "opt_learning_rate_decay_start_step": decay_start,
            "opt_learning_rate_decay_steps": decay_steps,
            "lowest_numerical_precision_in_linear": _PRECISIONS.get(train.precision, train.precision),
        }

    def _at(self, line: Line) -> dict[str, float]:
        return {"epoch_num": line["samples"] / self._train_samples, "samples_count": line["samples"]}

    def _block_at(self, samples: int) -> dict[str, float]:
        return {"first_epoch_num": samples / self._train_samples, "epoch_count": 1, "samples_count": samples}
