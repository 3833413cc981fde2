"""The Triton kernels compile for an H100 on a CPU, within bounds of registers and spills."""

import math
import re

import pytest
import registers

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


def test_a_row_is_read_16_bytes_at_a_time_and_exponentiated_once():
    ptx = registers.ptx_of(2048, 1000, 1.0, "uniform")
    loads = re.findall(r"ld\.global\S*", ptx)
    assert loads
    assert all(".v4" in load for load in loads)
    # A thread has 16 entries, exponentiated once, and up to three times where near uniform.
    assert ptx.count("ex2.approx") <= 4 * 16
