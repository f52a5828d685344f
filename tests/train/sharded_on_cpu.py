"""Run `edgetune` with accelerate's FSDP2 or DeepSpeed over CPU processes: `accelerate launch ... sharded_on_cpu.py`.

accelerate shards on accelerators only, although neither its FSDP2 code nor torch's asks for one, and DeepSpeed knows
CPUs (DS_ACCELERATOR=cpu). All that is changed here is that choice.
"""

import os
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from edgetune.cli import main

_init: Any = AcceleratorState.__init__


def _sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **rest: Any) -> None:
    """Choose FSDP where it was asked for; every later look at the state begins from the processes' kind again."""
    _init(self, *args, fsdp_plugin=fsdp_plugin, **rest)
    plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
    if plugin is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = plugin


def _gloo(*_: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_CPU


if __name__ == "__main__":
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        PartialState._prepare_backend = _gloo
    else:
        AcceleratorState.__init__ = _sharded
    main()
