"""Compiles a kernel source to a cubin with NVRTC; needs no GPU.

usage: nvrtc.py SOURCE ARCH OUT [-DNAME=VALUE ...]      (ARCH: sm_90a, sm_121a)
"""

import ctypes
import glob
import pathlib
import sys

INCLUDE = pathlib.Path(__file__).resolve().parents[1] / "include"


def library():
    """NVRTC from pip's wheel, CUDA_HOME's place or the loader path, builtins first."""
    for folder in sys.path:
        for name in sorted(glob.glob(folder + "/nvidia/cu13/lib/libnvrtc-builtins.so.13*")):
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        for name in glob.glob(folder + "/nvidia/cu13/lib/libnvrtc.so.13"):
            return ctypes.CDLL(name)
    return ctypes.CDLL("libnvrtc.so.13")


def compile_source(path, arch, options=()):
    """The cubin of one .cu file; its includes are given by name. Raises with NVRTC's log."""
    nvrtc = library()
    headers = sorted(INCLUDE.glob("*.cuh"))
    array = ctypes.c_char_p * len(headers)
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), pathlib.Path(path).read_bytes(), pathlib.Path(path).name.encode(), len(headers),
        array(*[h.read_bytes() for h in headers]), array(*[h.name.encode() for h in headers]))
    flags = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device", *options]
    code = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*[f.encode() for f in flags]))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if code:
        raise SystemExit(f"{path} for {arch}:\n{log.value.decode()}")
    if log.value.strip():
        print(log.value.decode(), file=sys.stderr)
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    return cubin.raw


if __name__ == "__main__":
    pathlib.Path(sys.argv[3]).write_bytes(compile_source(sys.argv[1], sys.argv[2], sys.argv[4:]))
