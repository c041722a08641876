"""Compiles the kernels for the card at hand and launches them on torch tensors through CuPy."""

import concurrent.futures
import pathlib
import tempfile

import cupy
import numpy
import torch

import nvrtc

SOURCES = ("moe_group", "mxfp4_moe_prefill", "mxfp4_moe_prefill_fp8", "dense_prefill", "attention_prefill", "rope_store", "rms_norm_rows")
KERNELS = pathlib.Path(__file__).resolve().parents[1]
# Bytes of weights and of scales that 16 rows by 64 columns take.
TILE_BYTES = {"mxfp4": 544, "q8": 1088, "bf16": 2048}
# (column slices, stages) by format and tile, as the sources instantiate them: large shared memory, small.
SHAPES = {
    ("moe", 16): ((1, 7), (1, 7)), ("moe", 32): ((1, 6), (1, 5)), ("moe", 64): ((1, 4), (1, 4)), ("moe", 128): ((1, 4), (1, 2)),
    ("q8", 16): ((4, 4), (4, 2)), ("q8", 32): ((4, 3), (4, 2)), ("q8", 64): ((2, 3), (2, 2)), ("q8", 128): ((1, 4), (1, 2)),
    ("bf16", 16): ((4, 3), (4, 2)), ("bf16", 32): ((4, 3), (4, 2)), ("bf16", 64): ((2, 3), (2, 2)), ("bf16", 128): ((1, 3), (1, 2)),
    ("mxfp4", 16): ((4, 4), (4, 4)), ("mxfp4", 32): ((4, 3), (4, 2)), ("mxfp4", 64): ((2, 4), (2, 2)), ("mxfp4", 128): ((1, 4), (1, 2)),
}
WIDE_STAGES = {"moe": 6, "mxfp4": 6, "q8": 5, "bf16": 4}
# (rows, stages large, small) of the MXFP8 expert products; "scaled" exists on sm_121a.
FP8_SHAPES = {"fp8_plain_64": (64, (3, 3)), "fp8_plain_128": (128, (4, 2)), "fp8_scaled_64": (64, (2, 2)), "fp8_scaled_128": (128, (2, 2))}
TILES = (16, 32, 64, 128, "wide")  # "wide" exists on sm_90a


def tile_rows(tile):
    return FP8_SHAPES[tile][0] if tile in FP8_SHAPES else 256 if tile == "wide" else tile


def shared_bytes(kind, tile, small):
    if tile in FP8_SHAPES:
        rows, stages = FP8_SHAPES[tile]
        return stages[small] * (8 * 1088 + rows * 132)
    weights = 8 * TILE_BYTES["mxfp4" if kind == "moe" else kind]
    if tile == "wide":
        return WIDE_STAGES[kind] * ((32768 + weights + 1023) // 1024 * 1024)
    slices, stages = SHAPES[kind, tile][small]
    return stages * (weights + slices * tile * 128)


class Kernels:
    """Every kernel by name; call kernel(name, grid, block, shared, *args): tensors, ints and floats."""

    def __init__(self, options=()):
        major, minor = torch.cuda.get_device_capability()
        self.small = major >= 12
        self.processors = torch.cuda.get_device_properties(0).multi_processor_count
        arch = f"sm_{major}{minor}a"
        with concurrent.futures.ThreadPoolExecutor() as pool:
            cubins = list(pool.map(lambda name: nvrtc.compile_source(KERNELS / f"{name}.cu", arch, options), SOURCES))
        self.raised = set()
        self.folder, self.modules, self.functions = tempfile.TemporaryDirectory(), [], {}
        for name, cubin in zip(SOURCES, cubins):
            path = pathlib.Path(self.folder.name) / f"{name}.cubin"
            path.write_bytes(cubin)
            self.modules.append(cupy.RawModule(path=str(path)))

    def function(self, name):
        if name not in self.functions:
            for module in self.modules:
                try:
                    self.functions[name] = module.get_function(name)
                    break
                except cupy.cuda.driver.CUDADriverError:
                    continue
        return self.functions[name]

    def __call__(self, name, grid, block, shared, *args):
        function = self.function(name)
        if shared > 48 * 1024 and name not in self.raised:
            function.max_dynamic_shared_size_bytes = shared
            self.raised.add(name)
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            function(grid if isinstance(grid, tuple) else (grid,), (block,), tuple(map(argument, args)), shared_mem=shared)

    def tiles(self):
        return TILES[:-1] if self.small else TILES

    def fp8_tiles(self):
        return [t for t in FP8_SHAPES if self.small or "plain" in t]

    def persistent(self, name, kind, tile, *args):
        """A kernel over work items: as many blocks as the card may hold at once."""
        shared = shared_bytes(kind, tile, self.small)
        each = max(1, min(4, (100 if self.small else 227) * 1024 // (shared + 1024)))
        self(f"{name}_{tile}", self.processors * each, 256 if tile == "wide" else 128, shared, *args)


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
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / inner)
    return sorted(times)[repeats // 2]
