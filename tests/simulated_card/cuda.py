"""What stands in torch.cuda while the simulated card is there: one A100 of 80 GB, which says that it is simulated."""

import time
from types import SimpleNamespace

import torch
import torch.serialization

from simulated_card import counts

GB = 2**30
PROPERTIES = SimpleNamespace(
    name="simulated A100", total_memory=80 * GB, major=8, minor=0, multi_processor_count=108, is_integrated=False
)


class Stream:
    """The card's only stream, on which all work is done as soon as it is asked for."""

    device = torch.device("cuda", 0)
    cuda_stream = stream_id = device_index = 0

    def __init__(self, *_, **__): ...

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def wait_stream(self, stream): ...

    def wait_event(self, event): ...

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def query(self):
        return True

    def synchronize(self):
        counts.host_waits("synchronize")


class Event:
    """A moment in the stream."""

    def __init__(self, *_, **__):
        self.at = 0.0

    def record(self, stream=None):
        self.at = time.perf_counter()

    def wait(self, stream=None): ...

    def query(self):
        return True

    def synchronize(self):
        counts.host_waits("synchronize")

    def elapsed_time(self, end_event):
        return 1e3 * (end_event.at - self.at)


class device:
    """The context of the only device."""

    def __init__(self, *_): ...

    def __enter__(self): ...

    def __exit__(self, *_): ...


def synchronize(device=None):
    counts.host_waits("synchronize")


def stream(stream):
    return stream or Stream()


def _lazy_call(call, **_): ...


def get_rng_state(device="cuda"):
    """Return a state; the card draws from the CPU's generator, whose state is saved and restored beside it."""
    return torch.arange(16, dtype=torch.uint8)


def get_rng_state_all():
    return [get_rng_state()]


def set_rng_state(new_state, device="cuda"):
    if not isinstance(new_state, torch.Tensor) or new_state.device.type != "cpu" or new_state.dtype != torch.uint8:
        raise TypeError(f"RNG state must be a torch.ByteTensor on the CPU, not {new_state!r:.80}")


def set_rng_state_all(new_states):
    for state in new_states:
        set_rng_state(state)


def _answering(value):
    return lambda *_, **__: value


REPLACED = {
    name: globals()[name]
    for name in (
        "Stream", "Event", "device", "synchronize", "stream", "_lazy_call", "get_rng_state", "get_rng_state_all",
        "set_rng_state", "set_rng_state_all",
    )
}  # fmt: skip
ANSWERS = {
    "is_available": True, "is_initialized": True, "_is_in_bad_fork": False, "init": None, "_lazy_init": None,
    "device_count": 1, "current_device": 0, "set_device": None, "_exchange_device": 0, "_maybe_exchange_device": 0,
    "get_device_name": PROPERTIES.name, "get_device_capability": (8, 0), "get_device_properties": PROPERTIES,
    "get_arch_list": ["sm_80"], "is_bf16_supported": True, "can_device_access_peer": False,
    "current_stream": Stream(), "default_stream": Stream(), "manual_seed": None, "manual_seed_all": None,
    "empty_cache": None, "ipc_collect": None, "reset_peak_memory_stats": None, "mem_get_info": (70 * GB, 80 * GB),
    "memory_allocated": GB, "max_memory_allocated": GB, "memory_reserved": GB, "max_memory_reserved": GB,
    "memory_stats": {},
}  # fmt: skip


def install() -> None:
    """Put the functions of this module into torch.cuda."""
    for name, value in {**REPLACED, **{name: _answering(value) for name, value in ANSWERS.items()}}.items():
        setattr(torch.cuda, name, value)
    torch.version.cuda = "12.8"
    _make_storages()
    _make_collectives()


def _make_storages() -> None:
    """Let tensors be saved, loaded and copied: a PyTorch without CUDA makes storages on a card only as those of tensors."""
    base, of_cpu = torch.storage._StorageBase, torch.UntypedStorage.clone

    def moved(storage):
        empty = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cuda").untyped_storage()
        return empty.copy_(storage, False)

    def load(storage, location):
        return moved(storage) if location.startswith("cuda") else None

    base.clone = lambda self: moved(self) if self.device.type == "cuda" else of_cpu(self)
    registry = torch.serialization._package_registry
    registry[:] = [(priority, tag, load if priority == 20 else put) for priority, tag, put in registry]  # 20 is CUDA's


def _make_collectives() -> None:
    """Let gloo exchange tensors of the card through the CPU, as it does where PyTorch is built with CUDA."""
    import torch.distributed as dist

    reduce, broadcast, gather = dist.all_reduce, dist.broadcast, dist.all_gather

    def in_place(collective):
        def call(tensor, *args, **kwargs):
            here = tensor.cpu()
            collective(here, *args, **kwargs)
            tensor.copy_(here)

        return call

    def all_gather(tensor_list, tensor, *args, **kwargs):
        here = [each.cpu() for each in tensor_list]
        gather(here, tensor.cpu(), *args, **kwargs)
        for each, gathered in zip(tensor_list, here, strict=True):
            each.copy_(gathered)

    dist.all_reduce, dist.broadcast, dist.all_gather = in_place(reduce), in_place(broadcast), all_gather
