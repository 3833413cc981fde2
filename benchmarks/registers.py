"""Registers, spills and special functions of the Triton kernels, compiled for an H100 on a CPU.

No GPU takes part: Triton compiles for a stated target, and its assembler says what a thread takes.
With four warps a program, 48 registers a thread let ten programs share a multiprocessor, 96 five.
Kernels are those of the last layer, from logits or from a head, and that of products over
positions, which are the weight gradients of other layers.

python benchmarks/registers.py -o kernel-registers.csv
"""

import argparse
import itertools
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import records
import torch
from layers import LAYERS

from gradscore.closed_form import cuda
from gradscore.rules import cuda_gram, cuda_products

LOGITS = [(2048, 1000), (2048, 21843), (64, 10), (512, 100)]
"""Features and classes of rows whose logits come from memory."""
HEADS = [(64, 10), (256, 1000)]
"""Features and classes of heads that are multiplied in the kernel."""
ORDERS = (0.5, 1.0, 3.0)
"""Below 1 a kernel works in float64; 2 and infinity take about what 1 takes."""
WARPS = 4
PRODUCTS = (
    "linear 768 to 3072, 197 positions",
    "1x1, 64 to 256, 56 x 56",
    "1x1, 512 to 2048, 7 x 7",
    "3x3, 64 to 64, 56 x 56",
    "3x3, 256 to 512, stride 2, 14 x 14",
    "7x7, 3 to 64, stride 2, 224 x 224",
    "16x16, 3 to 768, stride 16, 224 x 224",
)
"""Layers, of those in ``layers.py``, that the kernel of product norms is compiled for."""
GRAMS = ("linear 768 to 3072, 197 positions", "3x3, 512 to 512, 7 x 7")
"""Layers that the kernel of Gram matrices is compiled for."""
BATCH = 64
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
PRODUCT_ORDERS = ((1.0,), (2.0,), (1.0, 2.0, math.inf))
LOADS = r"ld\.global|cp\.async\.c\w\.shared\.global"
"""Loads into registers, and copies into the memory that a multiprocessor's threads share."""
LOADS_OF_16_BYTES = r"ld\.global\S*\.v4|cp\.async\.c\w\.shared\.global [^;]*, 0x10,"
TENSOR_CORE_PRODUCTS = r"mma(?:_async)?\S*\.sync\S*\.m\d+n"


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
    import triton.language as tl

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
    return compiled(kernel, signature, known, aligned, WARPS)


def compiled(
    kernel: Any,
    signature: Mapping[str, Any],
    known: Mapping[Any, Any],
    attributes: Mapping[Any, Any],
    warps: int,
) -> str:
    """Return the PTX of a kernel for compute capability 9.0.

    Args:
        kernel: The kernel.
        signature: Triton's names of its arguments' types, by argument.
        known: Values that are compiled into it.
        attributes: What else is known of arguments, by place.
        warps: Warps of a program.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(kernel, dict(signature), dict(known), dict(attributes))
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    return built.asm["ptx"]


def product_ptx_of(layer: str, orders: Sequence[float], dtype: torch.dtype = torch.float32) -> str:
    """Return the PTX of the kernel of product norms as a launch would compile it.

    Args:
        layer: A name of ``layers.py``.
        orders: Orders of the norm.
        dtype: The type of the data.
    """
    from gradscore.rules.triton_products import product_norms_kernel

    product = LAYERS[layer].product(*LAYERS[layer].data(BATCH, dtype, "meta"))
    return launched(product_norms_kernel, *cuda_products.launch_of(product, orders)[1:])


def gram_ptx_of(layer: str, dtype: torch.dtype = torch.float32) -> str:
    """Return the PTX of the kernel of Gram matrices, as of :func:`product_ptx_of`."""
    from gradscore.rules.triton_gram import gram_kernel

    product = LAYERS[layer].product(*LAYERS[layer].data(BATCH, dtype, "meta"))
    return launched(gram_kernel, *cuda_gram.launch_of(product)[1:])


def launched(kernel: Any, arguments: Sequence[Any], known: Mapping[str, Any]) -> str:
    """Return the PTX of a kernel as a launch with these arguments would compile it.

    Args:
        kernel: The kernel.
        arguments: Its arguments by place: tensors, which may be without memory, and numbers.
        known: What is compiled into it, by name, and ``num_warps``.
    """
    known = dict(known)
    warps = known.pop("num_warps")
    signature = dict.fromkeys(known, "constexpr")
    constants = {(kernel.arg_names.index(name),): value for name, value in known.items()}
    attributes = {}

    def kind(value: Any, place: tuple[int, ...]) -> Any:
        """Return the type of an argument as a launch tells it to the compiler."""
        if isinstance(value, tuple):
            return tuple(kind(entry, (*place, i)) for i, entry in enumerate(value))
        if isinstance(value, int) and value == 1:
            constants[place] = 1
            return "constexpr"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[place] = [["tt.divisibility", 16]]
        return f"*{TYPES[value.dtype]}" if isinstance(value, torch.Tensor) else "i32"

    for place, value in enumerate(arguments):
        signature[kernel.arg_names[place]] = kind(value, (place,))
    signature = {name: signature[name] for name in kernel.arg_names}
    return compiled(kernel, signature, constants, attributes, warps)


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
    from_logits = [(shape, "fp32", False) for shape in LOGITS]
    from_heads = [(shape, dtype, True) for shape in HEADS for dtype in ("fp32", "fp16", "bf16")]
    for ((m, c), dtype, head), p, target in itertools.product(
        from_logits + from_heads, ORDERS, ("uniform", "one-hot")
    ):
        about = {"kernel": "head" if head else "logits", "shape": f"{m} x {c}", "type": dtype}
        yield about | {"p": p, "target": target} | measured(ptx_of(m, c, p, target, dtype, head))
    for layer, dtype, orders in itertools.product(PRODUCTS, TYPES, PRODUCT_ORDERS):
        about = {"kernel": "product", "shape": layer, "type": TYPES[dtype]}
        about |= {"p": " ".join(map(str, orders)), "target": ""}
        yield about | measured(product_ptx_of(layer, orders, dtype))
    for layer, dtype in itertools.product(GRAMS, TYPES):
        about = {"kernel": "gram", "shape": layer, "type": TYPES[dtype], "p": 2.0, "target": ""}
        yield about | measured(gram_ptx_of(layer, dtype))


def measured(ptx: str) -> dict[str, Any]:
    """Return what there is to say of a compiled kernel, as columns of the record."""
    import triton

    registers, spilled = usage(ptx)
    return {
        **{"registers": registers, "spilled_bytes": spilled},
        "exponentials": ptx.count("ex2.approx"),
        "loads": len(re.findall(LOADS, ptx)),
        "loads_of_16_bytes": len(re.findall(LOADS_OF_16_BYTES, ptx)),
        "tensor_core_products": len(re.findall(TENSOR_CORE_PRODUCTS, ptx)),
        "float64": ".f64" in ptx,
        "warps": int(re.search(r"\.reqntid (\d+)", ptx)[1]) // 32,
        **{"target_gpu": "sm_90", "triton": triton.__version__},
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
