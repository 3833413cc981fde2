"""Registers, spills and special functions of the Triton kernels, compiled for an H100 on a CPU.

No GPU takes part: Triton compiles for a stated target, and its assembler says what a thread takes.
With four warps a program, 48 registers a thread let ten programs share a multiprocessor, 96 five.

python benchmarks/registers.py -o kernel-registers.csv
"""

import argparse
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import records

from gradscore.closed_form import cuda

LOGITS = [(2048, 1000), (2048, 21843), (64, 10), (512, 100)]
"""Features and classes of rows whose logits come from memory."""
HEADS = [(64, 10), (256, 1000)]
"""Features and classes of heads that are multiplied in the kernel."""
ORDERS = (0.5, 1.0, 3.0)
"""Below 1 a kernel works in float64; 2 and infinity take about what 1 takes."""
WARPS = 4


def assembler() -> str:
    """Return the path of Triton's own assembler.

    Raises:
        OSError: If there is none that runs here.
    """
    import triton

    try:
        path = triton.knobs.nvidia.ptxas.path
    except (AttributeError, RuntimeError) as error:
        raise OSError(str(error)) from error
    subprocess.run([path, "--version"], capture_output=True, check=False)
    return path


def ptx_of(
    in_features: int, classes: int, p: float, target: str, dtype: str = "fp32", head: bool = False
) -> str:
    """Return the PTX of one variant for compute capability 9.0, of contiguous tensors.

    Args:
        in_features: Number of features.
        classes: Number of classes.
        p: Order of the norm.
        target: ``uniform`` or ``one-hot``.
        dtype: Triton's name of the inputs' type.
        head: Whether logits are made in the kernel.
    """
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gradscore.closed_form.triton_kernels import closed_form_kernel as kernel

    tile = cuda.head_tile(classes) if head else cuda.logits_tile(in_features, classes)
    known = {"in_features": in_features, "classes": classes, "KIND": cuda.kind_of(p), **tile}
    known |= {"feature_row": in_features, "weight_row": in_features, "logit_row": classes}
    known |= dict.fromkeys(("feature_column", "weight_column", "logit_column"), 1)
    known |= {"TYPE": tl.float64 if p < 1 else tl.float32, "ONE_HOT": target == "one-hot"}
    known |= {"FROM_HEAD": head, "HAS_BIAS": head}
    kinds = dict.fromkeys(("features", "logits", "weight", "bias"), f"*{dtype}")
    kinds |= {"score": "*fp32", "rows": "i32"} | dict.fromkeys(known, "constexpr")
    signature = {name: kinds.get(name, "fp32") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, known, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS})
    return built.asm["ptx"]


def usage(ptx: str) -> tuple[int, int]:
    """Return the registers of a thread, and the bytes that it spills and loads back."""
    arch = re.search(r"\.target (sm_\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "kernel.ptx")
        written.write_text(ptx)
        command = [
            assembler(),
            "-v",
            f"-arch={arch}",
            written,
            "-o",
            written.with_suffix(".cubin"),
        ]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    return int(re.search(r"Used (\d+) registers", told)[1]), sum(map(int, spilled.groups()))


def rows() -> Iterator[dict[str, Any]]:
    """Yield a row for every variant."""
    import triton

    from_logits = [(shape, "fp32", False) for shape in LOGITS]
    from_heads = [(shape, dtype, True) for shape in HEADS for dtype in ("fp32", "fp16", "bf16")]
    for ((m, c), dtype, head), p, target in itertools.product(
        from_logits + from_heads, ORDERS, ("uniform", "one-hot")
    ):
        ptx = ptx_of(m, c, p, target, dtype, head)
        registers, spilled = usage(ptx)
        yield {
            **{"from": "head" if head else "logits", "features": m, "classes": c, "type": dtype},
            **{"p": p, "target": target, "registers": registers, "spilled_bytes": spilled},
            "exponentials": ptx.count("ex2.approx"),
            "loads": len(re.findall(r"ld\.global", ptx)),
            "loads_of_16_bytes": len(re.findall(r"ld\.global\S*\.v4", ptx)),
            "tensor_core_products": len(re.findall(r"mma\S*\.sync", ptx)),
            **{"float64": ".f64" in ptx, "warps": WARPS, "target_gpu": "sm_90"},
            "triton": triton.__version__,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile every variant, print, and append to a CSV row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    for row in rows():
        print(row, flush=True)
        if options.output:
            records.append(options.output, row)


if __name__ == "__main__":
    main()
