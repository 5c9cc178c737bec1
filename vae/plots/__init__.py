"""Numbers and arrays in, a figure or encoded bytes out."""
