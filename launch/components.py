"""The project's `dist` components for torchx: torchx's own, and `dist.ddp` takes the script as first argument too.

`ddp` finds a user's mistakes before any rank starts: a script's exit code 2 would come out of torchrun as 1, under a
traceback of the launcher. torchx lists this module's functions as components, so it imports modules, not functions.
"""

import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from torchx.components import dist
from torchx.specs import AppDef

from dlrm_dist.errors import UserError
from launch import torchrun

ROOT = Path(__file__).resolve().parents[1]
TRAIN_SCRIPT = ROOT / "launch" / "train.py"
TRAIN_MODULE = "launch.train"


# functools.wraps: torchx builds its command line from the signature and the help, which stay those of torchx.
@functools.wraps(dist.ddp)
def ddp(*script_args: str, **options: Any) -> AppDef:
    """Starts a script, or a module with -m, as nodes x ranks processes through torchrun."""
    script_args, options = _named_script(script_args, options)
    script, m = options.get("script"), options.get("m")
    size = _size(options.get("j", "1x2"))
    _check_script(script, m)
    trains = _trains(script, m)
    if trains:
        grace_s = _check_training(list(script_args), size.world_size, size.ranks_per_host)
    torchrun.put_on_path()
    env = dict(options.get("env") or {})
    # torchrun sets 1 too, with a warning; the ranks choose their threads when they know how many share the machine.
    env.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    if trains:
        env.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(grace_s))
    try:
        app = dist.ddp(*script_args, **{**options, "env": env})
    except (KeyError, ValueError) as error:  # an unknown -h, or --mounts or --name of the wrong form
        _user_error(str(error.args[0]))
    torchrun.choose_launcher(app, size, trains, options.get("max_retries", 0))
    return app


ddp.__doc__ = (dist.ddp.__doc__ or "").replace(
    "script_args: arguments to the main module",
    "script_args: the script, unless --script or -m names it, and its arguments",
)


@functools.wraps(dist.spmd)
def spmd(*args: str, **options: Any) -> AppDef:
    """Is torchx's own, which checks no script: also for scripts that exist only inside an image."""
    torchrun.put_on_path()
    return dist.spmd(*args, **options)


def _named_script(script_args: tuple[str, ...], options: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Moves the script from the arguments to the options, if neither --script nor -m is given."""
    if options.get("script") is not None or options.get("m") is not None:
        return script_args, options
    if not script_args:
        _user_error("no script given; say which, as in: dist.ddp -j 1x2 launch/train.py")
    return script_args[1:], {**options, "script": script_args[0]}


def _user_error(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _size(j: str) -> torchrun.Size:
    try:
        return torchrun.parse_size(j)
    except UserError as error:
        _user_error(str(error))


def _check_script(script: Any, m: Any) -> None:
    if script is not None and m is not None:
        _user_error(f"--script {script} and -m {m} exclude each other; give one of them")
    if script is not None and not Path(script).is_file():
        _user_error(f"no such script: {script}; it is looked for from {Path.cwd()}")


def _trains(script: Any, m: Any) -> bool:
    return m == TRAIN_MODULE or (script is not None and Path(script).resolve() == TRAIN_SCRIPT)


def _check_training(script_args: list[str], world_size: int, ranks_per_node: int) -> int:
    """Returns the seconds that the run has to save when it is asked to stop."""
    logging.disable(logging.WARNING)  # torchx shows every library's notices, FBGEMM's on each of its parts too
    try:
        from dlrm_dist.preflight import check  # here, because it imports torch, which other components do not need

        return check(script_args, world_size, ranks_per_node)
    except UserError as error:
        _user_error(str(error))
    finally:
        logging.disable(logging.NOTSET)
