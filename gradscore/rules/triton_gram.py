"""Frobenius norms of per-sample products by Gram matrices in Triton, neither of which is written.

A program makes one tile of both Gram matrices of one sample, and stores the sum of their product.
:func:`gradscore.rules.gram.gram_norms` is the same in plain torch.
"""

import triton
import triton.language as tl

from gradscore.rules.triton_products import offset_of


@triton.jit
def add_entries(products, above, beside, offset, first, second, inside):
    """Add what some entries of the vectors contribute to the products of a tile's positions."""
    a = tl.load(above + offset[None, :], first[:, None] & inside[None, :], other=0.0)
    b = tl.load(beside + offset[:, None], inside[:, None] & second[None, :], other=0.0)
    return tl.dot(a, b, products, input_precision="tf32x3")


@triton.jit(do_not_specialize=["samples"])
def gram_kernel(
    left,
    right,
    parts,
    samples,
    channels,
    columns,
    positions,
    position_sizes,
    column_sizes,
    left_sample,
    left_channel,
    left_position,
    right_sample,
    right_column,
    right_position,
    POSITIONS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Store what one tile of ``left^T left`` and ``right^T right`` adds to a sample's sums.

    Both matrices are symmetric. With the positions cut into blocks, a program takes a block and
    the one ``far`` blocks further. That counts twice unless the way back is as long, or none.

    Args:
        left: As of ``product_norms_kernel``, as are all that are not named here.
        right: Likewise.
        parts: Where to write, ``[programs of a sample, samples, 4]``, in float32: the sum, and of
            the diagonals the sum of square roots of their products and the largest of each.
        samples: Number of samples.
        channels: Length of the vectors that ``left^T left`` compares.
        columns: Length of those that ``right^T right`` compares.
        positions: Rows and columns of both matrices.
        position_sizes: Sizes of the axes of positions.
        column_sizes: Sizes of the axes of columns.
        left_sample: Stride of ``left``.
        left_channel: Stride of ``left``.
        left_position: Strides of ``left``.
        right_sample: Stride of ``right``.
        right_column: Strides of ``right``.
        right_position: Strides of ``right``.
        POSITIONS: Rows and columns of a tile.
        ENTRIES: Entries of a vector that are read at once.
    """
    blocks = tl.cdiv(positions, POSITIONS)
    programs = blocks * (blocks // 2 + 1)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    block, far = program % blocks, program // blocks
    down = block * POSITIONS + tl.arange(0, POSITIONS)
    across = (block + far) % blocks * POSITIONS + tl.arange(0, POSITIONS)
    first, second = down < positions, across < positions
    left += sample * left_sample
    right += sample * right_sample

    of_left = tl.zeros([POSITIONS, POSITIONS], tl.float32)
    above = left + offset_of(down, position_sizes, left_position)[:, None]
    beside = left + offset_of(across, position_sizes, left_position)[None, :]
    for start in range(0, channels, ENTRIES):
        channel = start + tl.arange(0, ENTRIES)
        inside = channel < channels
        offset = channel.to(tl.int64) * left_channel
        of_left = add_entries(of_left, above, beside, offset, first, second, inside)
    of_right = tl.zeros([POSITIONS, POSITIONS], tl.float32)
    above = right + offset_of(down, position_sizes, right_position)[:, None]
    beside = right + offset_of(across, position_sizes, right_position)[None, :]
    for start in range(0, columns, ENTRIES):
        column = start + tl.arange(0, ENTRIES)
        inside = column < columns
        offset = offset_of(column, column_sizes, right_column)
        of_right = add_entries(of_right, above, beside, offset, first, second, inside)

    once = (far == 0) | (2 * far == blocks)
    total = tl.sum(tl.sum(of_left * of_right, axis=1), axis=0) * tl.where(once, 1.0, 2.0)
    diagonal = down[:, None] == across[None, :]
    of_left = tl.sum(tl.where(diagonal, of_left, 0.0), axis=1)
    of_right = tl.sum(tl.where(diagonal, of_right, 0.0), axis=1)
    place = parts + (program.to(tl.int64) * samples + sample) * 4
    tl.store(place, total)
    tl.store(place + 1, tl.sum(tl.sqrt(of_left) * tl.sqrt(of_right), axis=0))
    tl.store(place + 2, tl.max(of_left, axis=0))
    tl.store(place + 3, tl.max(of_right, axis=0))
