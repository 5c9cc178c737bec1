"""A GPU for machines without one: tensors that say they are on cuda:0 and compute on the CPU.

Real numbers flow, so that whole runs, pictures and estimators go through. What a GPU would refuse
raises here too (tensors of two devices in one operation), and what would make it wait is counted:
values that Python asks of it, and data that are copied to it. The rules are compared with those of
PyTorch's FakeTensorMode in test_devices.py, which itself has no values and no backward pass here.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
PROJECT = str(Path(__file__).parents[1] / "vae")

VALUES = {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__"}
VALUES |= {"nonzero", "masked_select", "unique", "bincount", "equal", "allclose", "is_nonzero"}
VALUES |= {"argwhere", "__contains__", "__repr__", "__format__"}  # they wait for the device
TO_DEVICE = {"tensor", "as_tensor", "new_tensor", "asarray", "from_numpy"}
UNCHECKED = {"copy_", "__get__", "__set__", "__delete__", "backward", "set_"}
UNCHECKED |= {"_has_compatible_shallow_copy_type"}


class DeviceMismatch(RuntimeError):
    """Tensors of two devices in one operation."""


class EmulatedGPU(TorchFunctionMode):
    """Within it `device="cuda"` works. A tensor is on the GPU if its storage was made there.

    `waits` counts where Python asked for a value, `copies` where data came from the host: by file
    and function of this project that did, the innermost one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, StorageWeakRef] = {}  # a weak reference keeps its address taken
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.sync_debug_mode: Any = 0

    def get_sync_debug_mode(self) -> Any:
        return self.sync_debug_mode

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.sync_debug_mode = mode

    # --- which tensors are on it --------------------------------------------------------------

    def holds(self, tensor: Tensor) -> bool:
        return innermost(tensor).untyped_storage()._cdata in self.storages

    def move(self, tensor: Tensor) -> Tensor:
        """Mark a tensor that was made just now, or as the result of tensors on the GPU."""
        storage = innermost(tensor).untyped_storage()
        self.storages.setdefault(storage._cdata, StorageWeakRef(storage))
        if len(self.storages) > 20_000:
            self.storages = {k: ref for k, ref in self.storages.items() if not ref.expired()}
        return tensor

    # --- what happens in an operation -----------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [t for t in tensors if self.holds(t)]

        # 1. Attributes of tensors.
        owner = getattr(getattr(func, "__self__", None), "__name__", "")
        if name == "__get__" and owner in ("device", "is_cuda", "is_cpu"):
            return (
                {"device": GPU, "is_cuda": True, "is_cpu": False}[owner] if there else func(*args)
            )
        if name == "__get__":
            return self.like(func(*args, **kwargs), there)

        # 2. Moves from one device to the other.
        if name in ("to", "cpu", "cuda", "type_as") and tensors:
            return self.moved(name, func, args, kwargs)

        # 3. Values that are asked for.
        mask = name in ("__getitem__", "__setitem__") and has_mask(args[1])
        if there and (name in VALUES or (mask and name == "__getitem__")):
            self.waits[caller()] += 1
            if self.sync_debug_mode == "error":
                raise RuntimeError("the host asks a value")
        if name in ("numpy", "__array__") and there:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        # 4. New tensors: on the device that is named, or where the tensors are.
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = CPU
            check_generator(kwargs.get("generator"), torch.device(device))
            made = func(*args, **kwargs)
            if torch.device(device).type != "cuda":
                return made
            if name in TO_DEVICE:
                self.copies[caller()] += 1
            return self.move(made)
        if there:
            self.check(name, tensors, there, args)
            check_generator(kwargs.get("generator"), GPU)
            if name == "new_tensor" or (name == "copy_" and not self.holds(args[1])):
                self.copies[caller()] += 1
        elif isinstance(kwargs.get("generator"), GPUGenerator):
            raise DeviceMismatch(f"{name}: a generator of cuda:0 for the CPU")
        return self.like(func(*args, **kwargs), there)

    def like(self, result: Any, there: list[Tensor]) -> Any:
        """Results of tensors on the GPU are there too."""
        for leaf in tree_leaves(result) if there else ():
            if isinstance(leaf, Tensor):
                self.move(leaf)
        return result

    def moved(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        rest += [*kwargs.values()]
        other = [value for value in rest if isinstance(value, Tensor)]
        named = [torch.device(v) for v in rest if isinstance(v, str | torch.device)]
        source = GPU if self.holds(tensor) else CPU
        if name in ("cpu", "cuda"):
            target = torch.device(name)
        elif other:
            target = GPU if self.holds(other[0]) else CPU
        else:
            target = named[0] if named else source
        dtypes = [v for v in rest if isinstance(v, torch.dtype)] or [t.dtype for t in other]
        layout = {k: v for k, v in kwargs.items() if k == "memory_format"}
        result = tensor.to(*dtypes, **layout) if dtypes or layout else tensor
        if source.type == target.type:
            return self.move(result) if source == GPU else result
        if target.type == "cuda":
            self.copies[caller()] += 1
        else:
            self.waits[caller()] += 1
        result = result.clone()  # another storage: views do not cross devices
        return self.move(result) if target.type == "cuda" else result

    def check(self, name: str, tensors: list[Tensor], there: list[Tensor], args: Any) -> None:
        """Raise DeviceMismatch where an operation would get tensors of two devices.

        A number that is a tensor without dimensions may come from the CPU; so may indices.
        """
        if len(tensors) == len(there) or name in UNCHECKED:
            return
        if name in ("__getitem__", "__setitem__"):  # indices and values of a slice are copied
            self.copies[caller()] += 1
            indexed = any(isinstance(leaf, Tensor) for leaf in tree_leaves(args[1]))
            tensors = [args[0], *(args[2:] if indexed else ())]
            tensors = [t for t in tensors if isinstance(t, Tensor)]
        elsewhere = [t for t in tensors if not self.holds(t) and (t.dim() or name in NO_SCALARS)]
        if elsewhere:
            shapes = [list(t.shape) for t in elsewhere]
            raise DeviceMismatch(f"{name}: tensors {shapes} on the CPU, others on cuda:0")


# take no number from the CPU
NO_SCALARS = {"cat", "stack", "concat", "hstack", "vstack", "index_select", "gather"}


def innermost(tensor: Tensor) -> Tensor:
    """What torch.func's transforms have wrapped."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, Tensor) and p.dtype == torch.bool for p in parts)


def caller() -> str:
    """`file:function` of the innermost function of this project that is being called."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PROJECT):
            path = Path(frame.f_code.co_filename)
            return f"{path.relative_to(PROJECT)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class GPUGenerator(torch.Generator):
    """A generator that says it is on cuda:0."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU


class Generators(type):
    """`torch.Generator(device)`: one of torch's for the CPU, a GPUGenerator for cuda."""

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        on_gpu = torch.device(device).type == "cuda"
        return GPUGenerator() if on_gpu else REAL_GENERATOR()

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, REAL_GENERATOR)


REAL_GENERATOR = torch.Generator


class AnyGenerator(metaclass=Generators):
    pass


def check_generator(generator: Any, device: torch.device) -> None:
    """Raise DeviceMismatch for a generator of another device than that of the numbers."""
    if generator is not None and generator.device.type != device.type:
        raise DeviceMismatch(f"a generator of {generator.device} for numbers on {device}")


def group_by_device(lists: list[list[Tensor]]) -> dict[Any, Any]:
    """As torch's own, which sees the CPU: gradients of one device and dtype each."""
    groups = {(gradient.device, gradient.dtype) for gradient in lists[0]}
    return {key: ([[g for g in lists[0] if (g.device, g.dtype) == key]], []) for key in groups}


def record(device: Any, *computations: Callable[[], Any]) -> list[Any]:
    """In place of CUDA graphs, the computations themselves; their outputs stay where they were,
    too."""
    return [(partial(repeat, compute, outputs := compute()), outputs) for compute in computations]


def repeat(compute: Callable[[], Any], outputs: Any) -> None:
    with torch.enable_grad():
        again = compute()
    for output, new in zip(outputs, again, strict=True):
        if output is not None:
            output.detach().copy_(new.detach())


@contextlib.contextmanager
def emulated_gpu() -> Iterator[EmulatedGPU]:
    """`trainer.accelerator=gpu` and `device="cuda"` work within it."""
    mode = EmulatedGPU()
    lightning = "lightning.fabric.accelerators.cuda.num_cuda_devices"
    precision = "lightning.pytorch.accelerators.cuda._check_cuda_matmul_precision"
    answers = {"torch.cuda.is_available": True, "torch.cuda.device_count": 1, lightning: 1}
    answers |= {"torch.cuda.get_device_name": "emulated", "torch.cuda.set_device": None}
    # Adam asks it for CUDA graphs
    answers |= {"torch.accelerator.current_accelerator": None, precision: None}
    answers |= {"torch.cuda.is_current_stream_capturing": False}
    answers |= {"torch.cuda.set_rng_state": None}
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, return_value=answer))
        stack.enter_context(mock.patch("torch.Generator", AnyGenerator))
        grouping = "torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype"
        stack.enter_context(mock.patch(grouping, side_effect=group_by_device))
        state = mock.patch("torch.cuda.get_rng_state", side_effect=lambda _: torch.get_rng_state())
        stack.enter_context(state)
        stack.enter_context(mock.patch("vae.training.cuda_graphs.record", record))
        for name in ("get_sync_debug_mode", "set_sync_debug_mode"):
            setting = mock.patch(f"torch.cuda.{name}", getattr(mode, name))
            stack.enter_context(setting)
        stack.enter_context(mode)
        yield mode
