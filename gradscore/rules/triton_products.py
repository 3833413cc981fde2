"""Norms of per-sample products over positions in Triton, which write no product to memory.

A program multiplies one tile of one sample's product, ``channels x columns``, over all positions,
and stores the norms of that tile. Tiles do not meet: what joins them is a second, small reduction,
so that equal inputs give equal digits. The same in plain torch is ``reduce_tiles`` of
:meth:`gradscore.rules.products.Product.tiles`.
"""

import triton
import triton.language as tl

from gradscore.closed_form.triton_tiles import INFINITE, ONE, inverse


@triton.jit
def offset_of(index, sizes, strides):
    """Return where entry ``index`` lies of axes that are counted as one, the last one fastest."""
    rest = index
    offset = tl.zeros_like(index).to(tl.int64)
    for place in tl.static_range(len(sizes) - 1, 0, -1):
        offset += (rest % sizes[place]).to(tl.int64) * strides[place]
        rest = rest // sizes[place]
    return offset + rest.to(tl.int64) * strides[0]


@triton.jit
def norm_of_tile(magnitude, KIND: tl.constexpr):
    """Return the norm of order 1, 2 or infinity of a tile of magnitudes; NaN if one is NaN."""
    if KIND == ONE:
        norm = tl.sum(tl.sum(magnitude, axis=1), axis=0)
    else:
        # Squares are taken of entries of about 1, so that none leaves the range of float32.
        largest = tl.max(tl.max(magnitude, axis=1), axis=0)
        broken = tl.sum(tl.sum((magnitude != magnitude).to(tl.int32), axis=1), axis=0)
        norm = largest
        if KIND != INFINITE:
            unit, by_unit = inverse(largest, tl.float32)
            scaled = magnitude * by_unit
            norm = tl.sqrt(tl.sum(tl.sum(scaled * scaled, axis=1), axis=0)) * unit
        norm = tl.where(broken > 0, float("nan"), norm)
    return norm


@triton.jit(do_not_specialize=["samples"])
def product_norms_kernel(
    left,
    right,
    norms,
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
    done,
    KINDS: tl.constexpr,
    SKIP: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Store the norms of one tile of one sample's ``left @ right.T``.

    Args:
        left: Output gradients, ``[samples, channels, *positions]``, at any strides.
        right: Inputs, ``[samples, *columns, *positions]``, at any strides.
        norms: Where to write, ``[tiles, samples, len(KINDS)]``, in float32.
        samples: Number of samples.
        channels: Rows of a product.
        columns: Columns of a product.
        positions: What it is summed over.
        position_sizes: Sizes of the axes of positions.
        column_sizes: Sizes of the axes of columns.
        left_sample: Stride of ``left`` from a sample to the next.
        left_channel: Its stride of channels.
        left_position: Its strides of positions, an axis each.
        right_sample: Stride of ``right`` from a sample to the next.
        right_column: Its strides of columns, an axis each.
        right_position: Its strides of positions, an axis each.
        done: Which samples are answered already, ``[samples]``; read where ``SKIP``.
        KINDS: The orders asked for.
        SKIP: Whether some samples are answered already: their norms are zero here.
        CHANNELS: Rows of a tile.
        COLUMNS: Columns of a tile.
        POSITIONS: Positions that are read at once.
    """
    down, across = tl.cdiv(channels, CHANNELS), tl.cdiv(columns, COLUMNS)
    sample = tl.program_id(0) // (down * across)
    tile = tl.program_id(0) % (down * across)
    channel = (tile % down) * CHANNELS + tl.arange(0, CHANNELS)
    column = (tile // down) * COLUMNS + tl.arange(0, COLUMNS)
    left += sample.to(tl.int64) * left_sample + channel[:, None].to(tl.int64) * left_channel
    right += sample.to(tl.int64) * right_sample
    right += offset_of(column, column_sizes, right_column)[None, :]
    if SKIP:
        positions = tl.where(tl.load(done + sample), 0, positions)

    product = tl.zeros([CHANNELS, COLUMNS], tl.float32)
    for start in range(0, positions, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        inside = position < positions
        g = tl.load(
            left + offset_of(position, position_sizes, left_position)[None, :],
            (channel < channels)[:, None] & inside[None, :],
            other=0.0,
        )
        x = tl.load(
            right + offset_of(position, position_sizes, right_position)[:, None],
            inside[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        # Float32 is three products of TF32, whose sum is then added to the others, and rounded.
        product = tl.dot(g, x, product, input_precision="tf32x3")

    # Entries past the last channel and column are zero: they change no norm.
    magnitude = tl.abs(product)
    place = norms + (tile.to(tl.int64) * samples + sample) * len(KINDS)
    for slot in tl.static_range(len(KINDS)):
        tl.store(place + slot, norm_of_tile(magnitude, KINDS[slot]))
