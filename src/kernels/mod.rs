//! The kernels: convolution, batch normalisation, pooling and the rest, forwards and backwards.

pub mod product;
