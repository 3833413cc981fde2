"""Images that are changed until they show nothing known."""

import pytest
import torch

from gradscore.data.surrogates import (
    SURROGATES,
    amplitude_swapped,
    inverted,
    make_surrogate,
    phase_scrambled,
    rotated,
    shuffled,
    surrogates_for,
)


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def make(name, images, place):
    return make_surrogate(name, images[place], lambda: images[(place + 1) % len(images)], place)


def cells(image, grid):
    """Return a grid's cells, each flat, in the order of their entries."""
    parts = [c for row in image.chunk(grid, 1) for c in row.chunk(grid, 2)]
    return sorted(part.flatten().tolist() for part in parts)


@pytest.mark.parametrize("grid", [4, 8])
def test_shuffling_moves_whole_cells(grid):
    image = pictures(3, 32, 16)
    moved = shuffled(image, grid, rng())
    assert cells(moved, grid) == cells(image, grid)
    assert not torch.equal(moved, image)


def test_sides_that_a_grid_does_not_divide_keep_their_size():
    image = pictures(3, 33, 30)
    moved = shuffled(image, 8, rng())
    assert moved.shape == image.shape
    assert moved.mean() == pytest.approx(image.mean().item(), abs=0.02)


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 9, 7)], ids=str)
def test_scrambled_phases_keep_the_spectrum(size):
    image = pictures(*size)
    scrambled = phase_scrambled(image, rng(1))
    spectra = [torch.fft.fft2(x).abs() for x in (image, scrambled)]
    torch.testing.assert_close(*spectra, rtol=1e-4, atol=1e-3)
    assert scrambled.mean() == pytest.approx(image.mean().item(), abs=1e-6)
    assert (scrambled - image).abs().mean() > 0.1


def test_swapped_amplitudes_are_those_of_another_image():
    image, another = pictures(3, 16, 16), pictures(3, 16, 16, seed=1)
    swapped = torch.fft.fft2(amplitude_swapped(image, another))
    expected = torch.fft.fft2(another).abs() * torch.exp(1j * torch.fft.fft2(image).angle())
    torch.testing.assert_close(swapped, expected, rtol=1e-4, atol=1e-3)


def test_inverted_and_rotated():
    image = pictures(1, 4, 4)
    assert torch.equal(inverted(image), 1 - image)
    assert torch.equal(rotated(image), torch.rot90(image, 2, (1, 2)))


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 8, 8), (3, 31, 45)], ids=str)
def test_a_surrogate_is_an_image_that_depends_on_its_place_alone(name, size):
    images = list(pictures(3, *size))
    made = make(name, images, 2)
    assert made.shape == images[2].shape
    assert made.dtype == torch.float32
    assert made.min() >= 0
    assert made.max() <= 1
    torch.manual_seed(5)
    assert torch.equal(made, make(name, images, 2))
    assert not torch.equal(made, images[2])


def test_the_last_image_takes_the_amplitudes_of_the_first():
    images = list(pictures(2, 3, 8, 8))
    expected = amplitude_swapped(images[1], images[0]).clamp(0, 1)
    assert torch.equal(make("amplitude", images, 1), expected)


def test_grids_finer_than_two_pixels_are_left_out():
    assert "shuffle8" not in surrogates_for(8, 8)
    assert "shuffle8" not in surrogates_for(15, 99)
    assert surrogates_for(16, 16) == list(SURROGATES)
    assert surrogates_for(7, 7) == ["phase", "amplitude", "inverted", "rotated"]
