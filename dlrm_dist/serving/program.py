"""The program of an export: a model that gives probabilities, traced with a batch of any size, compiled if asked to."""

import functools
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn

from dlrm_dist.errors import UserError, first_line
from dlrm_dist.serving.bags import Bags

Format = Literal["pt2", "aoti"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILE = "model.pt2"


class Inputs(NamedTuple):
    """B rows: what a program takes.

    Attributes:
        dense: float32 [B, N].
        values: int32 or int64, all ids of the first category, row by row, then those of the next.
        lengths: int32 [F, B], how many ids each row has in each category.
    """

    dense: Tensor
    values: Tensor
    lengths: Tensor


class Program(Protocol):
    """A module, a loaded program, or a compiled one."""

    def __call__(self, dense: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """`Inputs` to probabilities, float32 [B]."""


class Probabilities(nn.Module):
    """A model whose collections were replaced, giving probabilities.

    Args:
        model: gives logits; in evaluation mode, without gradients.
        bf16: multiply in bfloat16, as in training with that precision.
    """

    def __init__(self, model: nn.Module, bf16: bool = False) -> None:
        super().__init__()
        self.model, self._bf16 = model, bf16
        self.eval()

    def forward(self, dense: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """`Inputs` to probabilities, float32 [B]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            logits = self.model(dense, Bags(values, lengths))
        return logits.float().sigmoid()


def check_compiler() -> None:
    """Check that ahead-of-time compilation is possible here.

    Raises:
        UserError: no C++ compiler is found.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
    except InvalidCxxCompiler:
        compiler = ""
    if not compiler or shutil.which(compiler) is None:
        raise UserError(
            "--format aoti compiles C++, and no compiler is found; install one (Debian: g++; Fedora: gcc-c++), or name "
            "it in CXX; --format pt2 needs none"
        )


def write(module: Probabilities, example: Inputs, form: Format, path: Path) -> None:
    """Trace a module with a batch of any size, and write it.

    Args:
        module: in evaluation mode, without gradients.
        example: rows to trace it with, more than one.
        form: `pt2`, what torch.export saves; or `aoti`, compiled for this processor.
        path: the file to make.

    Raises:
        UserError: it cannot be compiled.
    """
    _register_classes()
    any_size = torch.export.Dim.DYNAMIC
    with torch.no_grad(), _quiet():
        module(*example)  # a model keeps what it works out on the first call, which must not be traced
        shapes = ({0: any_size}, {0: any_size}, {1: any_size})
        program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
        if form == "pt2":
            torch.export.save(program, path)
            return
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:  # the compiler's own errors have no common base
            raise UserError(
                f"--format aoti: the program cannot be compiled here: {first_line(error)}; it wants a C++ compiler "
                "with OpenMP and its headers (Debian: g++; Fedora: gcc-c++); --format pt2 needs none"
            ) from None


def load(form: Format, path: Path) -> Program:
    """Load what `write` wrote. A program is code: load only those whose origin you trust."""
    _register_classes()
    with _quiet():
        if form == "aoti":
            return torch._inductor.aoti_load_package(str(path))
        return torch.export.load(path).module()


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's remarks about itself are not for the user."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


@functools.cache
def _register_classes() -> None:
    """Make FBGEMM's operators and classes known to torch.export, once a process."""
    import fbgemm_gpu.split_table_batched_embeddings_ops_inference  # noqa: F401
    from torchrec.pt2.utils import register_fake_classes

    register_fake_classes()
