"""Sets of images, from whatever they are kept in."""
