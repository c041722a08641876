"""Holds the operands of the block-scaled product against what two sources say of the instruction. Needs nothing but Python.

usage: python3 check_lanes.py        (exit code 1 if anything disagrees)

Every element and scale is followed from where it lies in memory to the lane, register and byte in which the kernels hand it
over, by the kernels' own expressions (read from ../include), and from there to the row and column that it stands for:
once by the formulas of the PTX ISA, once by CUTLASS's layouts. ../README.md names both.
"""

import pathlib
import re
import sys

INCLUDE = pathlib.Path(__file__).resolve().parents[1] / "include"
LANES = range(32)


def expression(header, function):
    """A one-line device function of u32 arguments as a Python function."""
    text = (INCLUDE / header).read_text()
    names, body = re.search(rf"DEVICE u32 {function}\(([^)]*)\) {{ return ([^;]*); }}", text).groups()
    names = ", ".join(part.split()[-1] for part in names.split(","))
    body = re.sub(r"(0x[0-9a-f]+)u", r"\1", body)
    return eval(f"lambda {names}: ({body}) & 0xffffffff")


UPPER, LOWER = expression("mxfp4.cuh", "mxfp4_upper_e2m1"), expression("mxfp4.cuh", "mxfp4_lower_e2m1")
ROW_SCALES = expression("fp8.cuh", "row_scales")

# PTX ISA 9.1, 9.7.14.5.10 (fragments of m16n8k32, 8-bit containers) and 9.7.14.3 (block scaling, scale_vec::1X, thread ids 0).
PTX = {
    "a": lambda lane, i: (lane // 4 + (0 if i < 4 or 8 <= i < 12 else 8), lane % 4 * 4 + i % 4 + (16 if i >= 8 else 0)),
    "b": lambda lane, i: (lane // 4, lane % 4 * 4 + i % 4 + (16 if i >= 4 else 0)),
    "c": lambda lane, i: (lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2),
    "scale a": lambda lane: lane // 4 + 8 * (lane % 4) if lane % 4 in (0, 1) else None,
    "scale b": lambda lane: lane // 4 if lane % 4 == 0 else None,
}


def layout(shape, stride, rows):
    """A CuTe layout (threads, values) -> (row, column) of a column-major matrix of so many rows."""

    def offset(index, shape, stride):
        at = 0
        for size, step in zip(shape, stride):
            at, index = at + index % size * step, index // size
        return at

    def place(lane, value):
        at = offset(lane, shape[0], stride[0]) + offset(value, shape[1], stride[1])
        return at % rows, at // rows

    return place


# CUTLASS, include/cute/atom: SM80_16x8x32_S32S8S8S32_TN, whose A, B and C SM120_16x8x32_TN_VS has, and the latter's SFA, SFB.
CUTLASS = {
    "a": layout(((4, 8), (4, 2, 2)), ((64, 1), (16, 8, 256)), 16),
    "b": layout(((4, 8), (4, 2)), ((32, 1), (8, 128)), 8),
    "c": layout(((4, 8), (2, 2)), ((32, 1), (16, 8)), 16),
    "scale a": layout(((2, 2, 8), (32,)), ((8, 0, 1), (16,)), 16),
    "scale b": layout(((4, 8), (32,)), ((0, 1), (8,)), 8),
}


def weight_place(row, k):
    """Lane, register and byte in which the code of (row, k), k of a group of 32, is handed over, and its bits there."""
    t, j, r, h = k // 8, k // 4 % 2, k // 2 % 2, k % 2
    register = 2 * r + row // 8  # of mma.m16n8k16, in whose order weights are packed
    word = 0xF << (12 - 4 * register + 16 * h)
    found = [(2 * j + low, byte, operand(word) >> (8 * byte) & 0xFF) for low, operand in enumerate((UPPER, LOWER)) for byte in range(4)]
    found = [place for place in found if place[2]]
    if len(found) != 1:
        sys.exit(f"the code of weight ({row}, {k}) is handed over in {len(found)} bytes")
    return row % 8 * 4 + t, *found[0]


def activation_place(k):
    """Lane of the quad, register and byte of an activation: bytes of each four columns lie as k + 2, k, k + 3, k + 1."""
    byte = (1, 3, 0, 2)[k % 4]
    return k // 8, k // 4 % 2, byte


def check():
    faults, place_of_a = [], {}
    for row in range(16):
        for k in range(32):
            lane, register, byte, bits = weight_place(row, k)
            by_ptx, by_cutlass = (of["a"](lane, register * 4 + byte) for of in (PTX, CUTLASS))
            if bits != 0x3C:
                faults.append(f"weight ({row}, {k}) lies in bits {bits:#x} of its container, not 5..2")
            if by_ptx != by_cutlass or by_ptx[0] != row:
                faults.append(f"weight ({row}, {k}): {by_ptx} by PTX, {by_cutlass} by CUTLASS")
            place_of_a.setdefault(k, set()).add(by_ptx[1])
    for column in range(8):
        for k in range(32):
            t, register, byte = activation_place(k)
            by_ptx, by_cutlass = (of["b"](column * 4 + t, register * 4 + byte) for of in (PTX, CUTLASS))
            if by_ptx != by_cutlass or by_ptx[0] != column or {by_ptx[1]} != place_of_a[k]:
                faults.append(f"activation ({k}, {column}): {by_ptx} by PTX, {by_cutlass} by CUTLASS, weights at {place_of_a[k]}")
    if set().union(*place_of_a.values()) != set(range(32)):
        faults.append(f"columns of a group meet in places {place_of_a}")
    for lane in LANES:
        for i in range(4):
            if not PTX["c"](lane, i) == CUTLASS["c"](lane, i) == (lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2):
                faults.append(f"sum {i} of lane {lane}: {PTX['c'](lane, i)} by PTX, {CUTLASS['c'](lane, i)} by CUTLASS")
    return faults + check_scales()


def check_scales():
    """Scales of a tile are four bytes of each g: row g in two groups, then row g + 8; of activations four groups of a row."""
    faults, rows, columns = [], set(), set()
    for lane in LANES:
        g, t = lane // 4, lane % 4
        names = [(g, 0), (g, 1), (g + 8, 0), (g + 8, 1)]  # by byte of the word that the lane loads
        word = sum((i + 1) << (8 * i) for i in range(4))
        for group in range(2):
            byte = ROW_SCALES(word, t) >> (8 * group) & 0xFF
            given = names[byte - 1] if byte else None
            by_ptx, (by_cutlass, _) = PTX["scale a"](lane), CUTLASS["scale a"](lane, 0)
            if by_ptx is not None and not given == (by_ptx, group) == (by_cutlass, group):
                faults.append(f"lane {lane} gives scale {given} where PTX wants row {by_ptx}, CUTLASS {by_cutlass}, group {group}")
            rows |= {by_ptx}
        by_ptx, (by_cutlass, _) = PTX["scale b"](lane), CUTLASS["scale b"](lane, 0)
        if by_ptx is not None and not g == by_ptx == by_cutlass:
            faults.append(f"lane {lane} gives the scale of column {g} where PTX wants {by_ptx}, CUTLASS {by_cutlass}")
        columns |= {by_ptx}
    if rows - {None} != set(range(16)) or columns - {None} != set(range(8)):
        faults.append(f"scales of rows {rows} and columns {columns} are given")
    return faults


if __name__ == "__main__":
    found = check()
    for fault in found:
        print(fault, file=sys.stderr)
    print(f"operands of the block-scaled product: {16 * 32 + 8 * 32} elements, {16 + 8} scales, {len(found)} faults")
    sys.exit(1 if found else 0)
