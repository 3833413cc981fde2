"""The Triton kernels compile for an H100 on a CPU, within bounds of registers and spills."""

import math
import re

import pytest
import registers
import torch

pytest.importorskip("triton", reason="triton is not installed")

LOGITS = {"registers": 100}
FLOAT64 = {"registers": 255}
VARIANTS = [
    *(((2048, 1000, p, "uniform"), {}, {"registers": 64}) for p in (1.0, 2.0, 3.0, math.inf)),
    *(((2048, 1000, p, "one-hot"), {}, {"registers": 80}) for p in (1.0, 3.0, math.inf)),
    ((2048, 21843, 1.0, "uniform"), {}, {**LOGITS, "spilled": 8}),  # by Triton 3.6 alone
    ((2048, 21843, 3.0, "uniform"), {}, LOGITS),
    ((2048, 21843, 1.0, "one-hot"), {}, LOGITS),
    *(
        ((64, 10, p, target), {}, {"registers": 64})
        for p, target in ((1, "uniform"), (3, "one-hot"))
    ),
    ((512, 100, 0.5, "uniform"), {}, FLOAT64),
    ((64, 10, 1.0, "uniform"), {"head": True}, {"registers": 168}),
    ((64, 10, 1.0, "uniform"), {"head": True, "dtype": "bf16"}, {"registers": 96}),
    ((256, 1000, 1.0, "one-hot"), {"head": True}, {"registers": 200}),
    ((256, 1000, 1.0, "uniform"), {"head": True, "dtype": "fp16"}, {"registers": 128}),
]


ORDERS = (1.0, 2.0, math.inf)
HALF = torch.bfloat16
PRODUCTS = [
    ("linear 768 to 3072, 197 positions", (1.0,), torch.float32, 120),
    ("linear 768 to 3072, 197 positions", ORDERS, HALF, 96),
    ("1x1, 64 to 256, 56 x 56", (1.0,), torch.float16, 64),
    ("1x1, 512 to 2048, 7 x 7", ORDERS, torch.float32, 190),
    ("3x3, 64 to 64, 56 x 56", (2.0,), torch.float32, 170),
    ("3x3, 256 to 512, stride 2, 14 x 14", (1.0,), HALF, 232),
    ("7x7, 3 to 64, stride 2, 224 x 224", (1.0,), torch.float32, 180),
    ("16x16, 3 to 768, stride 16, 224 x 224", (math.inf,), HALF, 160),
]


@pytest.fixture(autouse=True, scope="module")
def assembler():
    try:
        registers.assembler()
    except OSError as error:
        pytest.skip(f"triton has no assembler for NVIDIA GPUs here: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "how", "bound"), VARIANTS, ids=str)
def test_a_kernel_keeps_within_its_registers_and_spills(variant, how, bound):
    ptx = registers.ptx_of(*variant, **how)
    used, spilled = registers.usage(ptx)
    assert used <= bound["registers"]
    assert spilled <= bound.get("spilled", 0)
    assert (".f64" in ptx) == (variant[2] < 1)
    assert bool(re.search(r"mma\S*\.sync", ptx)) == how.get("head", False)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "orders", "dtype", "most"), PRODUCTS, ids=str)
def test_the_kernel_of_products_keeps_within_its_registers(layer, orders, dtype, most):
    ptx = registers.product_ptx_of(layer, orders, dtype)
    used, spilled = registers.usage(ptx)
    assert (used <= most, spilled) == (True, 0), used
    assert ".f64" not in ptx
    products = set(re.findall(r"mma_async\S*\.m64n\d+k\d+\.f32\.(\w+)", ptx))
    assert products == {{"float32": "tf32", "float16": "f16", "bfloat16": "bf16"}[str(dtype)[6:]]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "dtype", "most"),
    [*zip(registers.GRAMS, (torch.float32, HALF), (180, 232), strict=True)],
)
def test_the_kernel_of_gram_matrices_keeps_within_its_registers(layer, dtype, most):
    ptx = registers.gram_ptx_of(layer, dtype)
    used, spilled = registers.usage(ptx)
    assert (used <= most, spilled) == (True, 0), used
    assert ".f64" not in ptx


def test_positions_are_added_to_the_product_in_float32_a_step_at_a_time():
    # A tensor core cuts sums off in place of rounding them: a long one would drift. So each step
    # starts at zero, and the 32 entries of a thread are added by themselves.
    ptx = registers.product_ptx_of("linear 768 to 3072, 197 positions", (math.inf,))
    first, *rest = re.findall(r"wgmma\.mma_async[^;]*\}, %rd\d+, (\S+), 1, 1;", ptx)
    assert first == "0"
    assert len(rest) == 11
    assert "0" not in rest
    assert len(re.findall(r"add\S*\.f32", ptx)) == 32


def test_features_side_by_side_are_read_16_bytes_at_a_time():
    ptx = registers.product_ptx_of("linear 768 to 3072, 197 positions", (1.0,))
    measured = registers.measured(ptx)
    assert measured["loads"] == measured["loads_of_16_bytes"] > 0
    # A product of float32 is three of TF32, over four parts of 32 positions.
    assert measured["tensor_core_products"] == 3 * 4


def test_a_row_is_read_16_bytes_at_a_time_and_exponentiated_once():
    ptx = registers.ptx_of(2048, 1000, 1.0, "uniform")
    loads = re.findall(r"ld\.global\S*", ptx)
    assert loads
    assert all(".v4" in load for load in loads)
    # A thread has 16 entries, exponentiated once, and up to three times where near uniform.
    assert ptx.count("ex2.approx") <= 4 * 16
