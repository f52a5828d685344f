"""Run `edgetune` with accelerate's FSDP2 over CPU processes: `accelerate launch ... sharded_on_cpu.py train ...`.

accelerate shards on accelerators only, although neither its FSDP2 code nor torch's asks for one. All that is changed
here is that choice.
"""

from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from edgetune.cli import cli

_init: Any = AcceleratorState.__init__


def _sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **rest: Any) -> None:
    """Choose FSDP where it was asked for; every later look at the state begins from the processes' kind again."""
    _init(self, *args, fsdp_plugin=fsdp_plugin, **rest)
    plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
    if plugin is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = _sharded
    cli.main()
