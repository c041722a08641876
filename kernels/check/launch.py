"""Compiles the kernels for the card at hand and launches them on torch tensors through CuPy."""

import concurrent.futures
import pathlib
import tempfile

import cupy
import numpy
import torch

import nvrtc
from timing import replays_us

SOURCES = ("moe_group", "mxfp4_moe_prefill", "mxfp4_moe_prefill_fp8", "dense_prefill", "attention_prefill", "rope_store", "rms_norm_rows", "narrow_rows")
KERNELS = pathlib.Path(__file__).resolve().parents[1]
TILES = (16, 32, 64, 128, "wide")  # "wide" exists on sm_90a
FP8_TILES = {"fp8_plain_64": 64, "fp8_plain_128": 128, "fp8_scaled_64": 64, "fp8_scaled_128": 128}  # "scaled" as on sm_121a


def tile_rows(tile):
    return FP8_TILES.get(tile) or (256 if tile == "wide" else tile)


class Kernels:
    """Every kernel by name; call kernel(name, grid, block, shared, *args): tensors, ints and floats."""

    def __init__(self, as_gb10=False):
        """With `as_gb10`, a Hopper's kernels are built as a GB10's are (include/types.cuh)."""
        major, minor = torch.cuda.get_device_capability()
        self.gb10 = as_gb10 or major >= 12
        options = ("-DAS_GB10",) if as_gb10 else ()
        self.processors = torch.cuda.get_device_properties(0).multi_processor_count
        arch = f"sm_{major}{minor}a"
        with concurrent.futures.ThreadPoolExecutor() as pool:
            cubins = list(pool.map(lambda name: nvrtc.compile_source(KERNELS / f"{name}.cu", arch, options), SOURCES))
        self.folder, self.modules = tempfile.TemporaryDirectory(), []
        self.functions, self.shared = {}, {}
        self.shared_most = (99 if self.gb10 else 227) * 1024
        for name, cubin in zip(SOURCES, cubins):
            path = pathlib.Path(self.folder.name) / f"{name}.cubin"
            path.write_bytes(cubin)
            self.modules.append(cupy.RawModule(path=str(path)))

    def function(self, name):
        if name not in self.functions:
            function = self.first(lambda module: module.get_function(name))
            # Blocks get more than 48 KiB only where that was said before. Static shared memory counts too.
            function.max_dynamic_shared_size_bytes = self.shared_most - function.shared_size_bytes
            self.functions[name] = function
        return self.functions[name]

    def shared_bytes(self, name):
        """What the kernel's source says it needs: the variable NAME_shared beside it."""
        if name not in self.shared:
            value = self.first(lambda module: module.get_global(f"{name}_shared"))
            self.shared[name] = int(cupy.ndarray((1,), numpy.int32, value).get()[0])
        return self.shared[name]

    def first(self, look):
        """What `look` finds in the first module that has it."""
        for module in self.modules:
            try:
                return look(module)
            except cupy.cuda.driver.CUDADriverError:
                continue
        raise KeyError("no kernel source defines it")

    def __call__(self, name, grid, block, shared, *args):
        function = self.function(name)
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            function(grid if isinstance(grid, tuple) else (grid,), (block,), tuple(map(argument, args)), shared_mem=shared)

    def tiles(self):
        return TILES[:-1] if self.gb10 else TILES

    def fp8_tiles(self):
        return [t for t in FP8_TILES if self.gb10 or "plain" in t]

    def persistent(self, name, tile, *args):
        """A kernel over work items: as many blocks as the card may hold at once."""
        name = f"{name}_{tile}"
        shared = self.shared_bytes(name)
        each = max(1, min(4, self.shared_most // (shared + 1024)))
        self(name, self.processors * each, 256 if tile == "wide" else 128, shared, *args)


def argument(value):
    if value is None:
        return numpy.uint64(0)
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous() and value.is_cuda
        return numpy.uint64(value.data_ptr())
    return numpy.float32(value) if isinstance(value, float) else numpy.int32(value)


def time_us(run, inner=8, repeats=7):
    """Median time of one call among replays of a graph of `inner` calls."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            run()
    return replays_us(graph, repeats) / inner
