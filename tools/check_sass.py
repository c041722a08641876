#!/usr/bin/env python3
"""Check that compiled kernels use the instructions they were written for.

    tools/check_sass.py CUBINS     a folder of NAME.ARCH.cubin files, as the kernels' test writes them

A kernel that lost its tensor-core instruction would still be right, and ten times slower. Needs cuobjdump and nvdisasm.
"""

import pathlib
import re
import subprocess
import sys

# File, target, kernel, and what its code must contain.
EXPECTED = [
    *[("linear_decode", arch, "linear_decode_q8", r"HMMA\.16816\.F32") for arch in ("sm_90a", "sm_121a")],
    *[("mxfp4_moe_decode", arch, "moe_gate_up_decode", r"HMMA\.16816\.F32") for arch in ("sm_90a", "sm_121a")],
    *[("mxfp4_moe_decode", arch, "moe_down_decode", r"LDG\.E\S*\.128") for arch in ("sm_90a", "sm_121a")],
    *[("attention_prefill", arch, "attention_prefill", r"HMMA\.16816\.F32\.BF16") for arch in ("sm_90a", "sm_121a")],
    *[("mxfp4_moe_prefill", arch, "mxfp4_moe_gate_up_128", r"HMMA\.16816\.F32") for arch in ("sm_90a", "sm_121a")],
    *[("mxfp4_moe_prefill_fp8", "sm_121a", f"mxfp4_moe_{product}_fp8_scaled_{tile}", r"QMMA\.SF\.16832\.F32\.E2M1\.E4M3")
      for product in ("gate_up", "down") for tile in (64, 128)],
    ("mxfp4_moe_prefill_fp8", "sm_121a", "block_scale_probe", r"QMMA\.SF\.16832"),
    ("mxfp4_moe_prefill_fp8", "sm_121a", "mxfp4_moe_gate_up_fp8_plain_128", r"QMMA\.16832"),
    ("mxfp4_moe_prefill_fp8", "sm_90a", "mxfp4_moe_gate_up_fp8_plain_128", r"HMMA\.16816\.F32"),
    ("mxfp4_moe_prefill", "sm_90a", "mxfp4_moe_gate_up_wide", r"HGMMA"),
    ("dense_prefill", "sm_90a", "dense_q8_wide", r"HGMMA"),
]


def functions(cubin):
    """Kernel name -> its code."""
    text = subprocess.run(["cuobjdump", "-sass", cubin], check=True, stdout=subprocess.PIPE, text=True).stdout
    parts = re.split(r"\n\s*Function : (\S+)\n", text)
    return dict(zip(parts[1::2], parts[2::2]))


def main(folder):
    complaints = []
    for name, arch, kernel, instruction in EXPECTED:
        code = functions(folder / f"{name}.{arch}.cubin").get(kernel)
        if code is None:
            complaints.append(f"{name}.cu for {arch} has no kernel {kernel}")
        elif not re.search(instruction, code):
            complaints.append(f"{kernel} for {arch} does not use {instruction}")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    print(f"instructions: {len(EXPECTED)} looked for, {len(complaints)} missing")
    return 1 if complaints else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(pathlib.Path(sys.argv[1])))
