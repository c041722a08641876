"""What the launches of a decode step cost when they only read: the budget of each kernel, on the GPU at hand.

usage: python3 skeleton.py [20b] [120b] [--rows 1 8] [--depth 256]        (needs torch and NVRTC 13)

Records a whole model's step as a graph of skeletons (skeleton.cu): each launch has the grid, the shared memory, the bytes and
the place of the real one (crates/backend-cuda/src/few.rs), reads the ids of random experts from memory, and depends on the one
before. Times are medians of replays, weights of each layer in memory of their own, as launches that may start before the
one before has ended (PDL) and as ones that may not:

    in place   what a step takes less without the launches of this kind
    alone      a graph of the launches of this kind, one after the other

In 8-bit attention and lm_head.
"""

import argparse
import ctypes
import random

import torch

import nvrtc
from skeleton_step import MODELS, step
from timing import replays_us

REPLAYS = 15
OUT_WORDS = 64 * 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--depth", type=int, default=256)
    asked = parser.parse_args()
    torch.cuda.init()
    device = Device()
    print(torch.cuda.get_device_name())
    for model in asked.models:
        for rows in asked.rows:
            table(device, model, rows, asked.depth)


def table(device, model, rows, depth):
    """Prints the table of one model and number of rows."""
    launches = step(MODELS[model], rows, depth, device.processors)
    bound = Bound(device, launches, MODELS[model].experts, rows)
    whole = {early: bound.time_us(early) for early in (True, False)}
    print(f"\n{model}, {rows} row(s), {depth} positions: {len(launches)} launches, {bound.megabytes():.0f} MB a step")
    print(f"{'µs a launch':24}{'launches':>9}{'MB':>9}{'PDL, in place':>15}{'alone':>8}{'without PDL':>13}{'alone':>8}")
    for name in dict.fromkeys(launch.name for launch in launches):
        count = sum(launch.name == name for launch in launches)
        times = []
        for early in (True, False):
            rest = bound.time_us(early, lambda launch: launch.name != name)
            times += [(whole[early] - rest) / count, bound.time_us(early, lambda launch: launch.name == name) / count]
        megabytes = bound.megabytes(lambda launch: launch.name == name) / count
        print(f"{name:24}{count:9}{megabytes:9.2f}{times[0]:15.2f}{times[1]:8.2f}{times[2]:13.2f}{times[3]:8.2f}", flush=True)
    for early, how in ((True, "with PDL"), (False, "without PDL")):
        us = whole[early]
        print(f"all, {how}: {us:.0f} µs, {rows * 1e6 / us:.0f} tokens/s, {bound.megabytes() / us * 1e3:.0f} GB/s", flush=True)


class Bound:
    """The launches of a step with memory of their own for what each reads."""

    def __init__(self, device, launches, experts, rows):
        self.device, self.launches = device, launches
        sizes = [launch.piece_bytes * launch.pieces * (experts if launch.chosen else 1) for launch in launches]
        self.places = [sum(sizes[:i]) for i in range(len(sizes))]
        # Random: zeroes may be read faster.
        self.weights = torch.empty(sum(sizes) // 8 + 1, dtype=torch.int64, device="cuda").random_()
        layers = sum(launch.chosen for launch in launches)
        chosen = [sorted(set().union(*(random.Random(f"{i // 2} {row}").sample(range(experts), 4) for row in range(rows)))) for i in range(layers)]
        self.ids = torch.tensor([ids + [0] * (64 - len(ids)) for ids in chosen], dtype=torch.int32, device="cuda")
        self.counts = torch.tensor([len(ids) for ids in chosen], dtype=torch.int32, device="cuda")
        self.numbers = [len(ids) for ids in chosen]
        self.sums = torch.zeros(2, OUT_WORDS, dtype=torch.int32, device="cuda")

    def megabytes(self, wanted=lambda launch: True):
        numbers = iter(self.numbers)
        each = [(launch, next(numbers) if launch.chosen else 1) for launch in self.launches]
        return sum(launch.piece_bytes * launch.pieces * number for launch, number in each if wanted(launch)) / 1e6

    def time_us(self, early, wanted=lambda launch: True):
        """Median time of a graph of the launches that are wanted."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.enqueue(early, wanted)
        return replays_us(graph, REPLAYS)

    def enqueue(self, early, wanted):
        layer, turn = -1, 0
        for launch, place in zip(self.launches, self.places):
            layer += launch.chosen
            if not wanted(launch):
                continue
            ids, count = (self.ids[layer].data_ptr(), self.counts[layer].data_ptr()) if launch.chosen else (0, 0)
            self.device.launch(
                launch.grid, launch.shared, early,
                ctypes.c_uint64(self.weights.data_ptr() + place), ctypes.c_uint64(launch.piece_bytes * launch.pieces),
                ctypes.c_int(launch.piece_bytes), ctypes.c_int(launch.pieces), ctypes.c_uint64(ids), ctypes.c_uint64(count),
                ctypes.c_int(launch.early), ctypes.c_uint64(self.sums[turn].data_ptr()), ctypes.c_int(launch.input_bytes // 16),
                ctypes.c_uint64(self.sums[1 - turn].data_ptr()), ctypes.c_int(OUT_WORDS))
            turn = 1 - turn


class Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = [("id", ctypes.c_int), ("value", ctypes.c_uint64 * 8)]


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint), ("stream", ctypes.c_void_p),
                ("attributes", ctypes.POINTER(Attribute)), ("attribute_count", ctypes.c_uint)]


class Device:
    """The driver, with the skeleton loaded: torch and CuPy have no launches that start early."""

    PROGRAMMATIC_STREAM_SERIALIZATION = 6  # a launch's attribute
    MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # a function's
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97  # a device's

    def __init__(self):
        self.driver = ctypes.CDLL("libcuda.so.1")
        torch.zeros(1, device="cuda")  # makes the context
        self.processors = torch.cuda.get_device_properties(0).multi_processor_count
        major, minor = torch.cuda.get_device_capability()
        cubin = nvrtc.compile_source(nvrtc.INCLUDE.parent / "check" / "skeleton.cu", f"sm_{major}{minor}a")
        module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.driver.cuModuleLoadData(ctypes.byref(module), cubin))
        self.check(self.driver.cuModuleGetFunction(ctypes.byref(self.function), module, b"skeleton"))
        shared = ctypes.c_int()
        self.check(self.driver.cuDeviceGetAttribute(ctypes.byref(shared), self.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 0))
        self.check(self.driver.cuFuncSetAttribute(self.function, self.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared))

    def launch(self, grid, shared, early, *arguments):
        allowed = Attribute(id=self.PROGRAMMATIC_STREAM_SERIALIZATION)
        allowed.value[0] = 1
        config = Config((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(256, 1, 1), shared,
                        torch.cuda.current_stream().cuda_stream, ctypes.pointer(allowed), int(early))
        values = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self.check(self.driver.cuLaunchKernelEx(ctypes.byref(config), self.function, values, None))

    def check(self, code):
        if code:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(code, ctypes.byref(text))
            raise SystemExit(f"the driver: {text.value.decode() if text.value else code}")


if __name__ == "__main__":
    main()
