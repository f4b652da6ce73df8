"""The Predictor: loads an export and scores raw rows, without the run, its dataset or a process group."""

import json
from pathlib import Path

import numpy as np

from dlrm_dist.errors import UserError, first_line
from dlrm_dist.serving import program
from dlrm_dist.serving.bundle import EXAMPLE, read_bundle, versions
from dlrm_dist.serving.managed import load_maps
from dlrm_dist.serving.scorer import Scorer

_EXAMPLE_TOLERANCE = 1e-4
"""Other processors and versions add in other orders; a program that is wrong is off by more."""


class Predictor(Scorer):
    """An export, ready to score.

    ```
    predictor = dlrm_dist.Predictor("exports/ads")
    predictor.predict({"I1": 3, "C1": "68fd1e64"})    # one row, or a list of them; what is absent is missing
    predictor.predict(pyarrow_table)                  # or a Parquet file, all raw columns there
    ```

    An export is a program: load only those whose origin you trust. Its files are compared with their checksums, and its
    example request is scored once.

    Args:
        folder: what `dlrm-dist export` made.

    Raises:
        UserError: there is no export; a file is missing or damaged; the versions at hand cannot run it.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.bundle = read_bundle(folder)
        try:
            loaded = program.load(self.bundle.program, folder / program.FILE)
        except Exception as error:  # PyTorch's own have no common base
            raise UserError(f"{folder / program.FILE}: {first_line(error)}; {self._made_with()}") from None
        super().__init__(self.bundle.signature.columns(folder), loaded, load_maps(folder))
        self._check_example(folder)

    def _made_with(self) -> str:
        made, here = (
            ", ".join(f"{name} {value}" for name, value in each.items()) for each in (self.bundle.versions, versions())
        )
        return f"it was made with {made}, here are {here}; export it again with what is here"

    def _check_example(self, folder: Path) -> None:
        request = json.loads((folder / EXAMPLE).read_text())
        if request["rows"]:
            found = self.predict(request["rows"])
            if not np.allclose(found, request["probabilities"], rtol=0, atol=_EXAMPLE_TOLERANCE):
                raise UserError(
                    f"{folder}: its example request gives {found.tolist()}, not {request['probabilities']}; "
                    f"{self._made_with()}"
                )
