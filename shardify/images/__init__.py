"""Image bytes and pixels: parse, decode, normalise, encode, measure."""
