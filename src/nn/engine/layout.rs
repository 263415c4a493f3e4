//! Where parameters lie on the device.
//!
//! Convolution weights come first, as [out][tap][in] (what cuDNN calls KRSC in NHWC), the input channels of the first
//! padded with zeros to a vector; then all other tensors as they are. Every tensor starts at a multiple of 256 bytes.
//! An optimiser goes over the whole buffer: the padding has no gradient, so it stays zero.

use crate::nn::graph::{Graph, Role};
use rayon::prelude::*;
use std::collections::HashMap;

/// Elements that a tensor's start is a multiple of.
const ALIGNMENT: usize = 128;

/// The layout of one graph's parameters.
pub(super) struct Layout {
    /// In the order of the graph's parameters.
    places: Vec<Place>,
    /// Start of a tensor on the device by its start on the host.
    starts: HashMap<usize, usize>,
    /// Values before the first tensor that is no convolution's weight.
    n_conv: usize,
    len: usize,
}

struct Place {
    host: std::ops::Range<usize>,
    device: usize,
    conv: Option<Conv>,
}

#[derive(Clone, Copy)]
struct Conv {
    n_taps: usize,
    n_in: usize,
    /// With padding.
    n_in_device: usize,
    n_out: usize,
}

impl Layout {
    /// Input channels are padded to a multiple of `vector`.
    pub(super) fn new(graph: &Graph, vector: usize) -> Layout {
        let mut places: Vec<Place> = graph
            .parameters
            .iter()
            .map(|tensor| {
                let conv = match tensor.role {
                    Role::ConvWeight { kernel, in_channels, out_channels } => Some(Conv {
                        n_taps: kernel * kernel,
                        n_in: in_channels,
                        n_in_device: in_channels.next_multiple_of(vector),
                        n_out: out_channels,
                    }),
                    _ => None,
                };
                Place { host: tensor.range.clone(), device: 0, conv }
            })
            .collect();
        let mut end = 0;
        for wants_conv in [true, false] {
            for place in places.iter_mut().filter(|place| place.conv.is_some() == wants_conv) {
                place.device = end;
                let length = place.conv.map_or(place.host.len(), |c| c.n_out * c.n_taps * c.n_in_device);
                end = (end + length).next_multiple_of(ALIGNMENT);
            }
        }
        let n_conv = places.iter().filter(|p| p.conv.is_none()).map(|p| p.device).min().unwrap_or(end);
        let starts = places.iter().map(|place| (place.host.start, place.device)).collect();
        Layout { places, starts, n_conv, len: end }
    }

    /// Values of all tensors with their padding.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Values of the convolutions' weights with their padding: all before the other tensors.
    pub(super) fn n_conv(&self) -> usize {
        self.n_conv
    }

    /// Where the tensor starts that starts at `host` in the flat buffer of the host.
    pub(super) fn start(&self, host: usize) -> usize {
        // Every range of a graph's operations is one of its tensors.
        self.starts.get(&host).copied().unwrap_or_default()
    }

    /// The host's flat values in this layout.
    pub(super) fn to_device(&self, host: &[f32]) -> Vec<f32> {
        let mut device = vec![0.0; self.len];
        let mut rest = &mut device[..];
        let mut pieces = Vec::with_capacity(self.places.len());
        let mut at = 0;
        for place in self.in_device_order() {
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(place.device - at);
            let (own, tail) = tail.split_at_mut(place.len());
            at = place.device + own.len();
            rest = tail;
            pieces.push((place, own));
        }
        pieces.into_par_iter().for_each(|(place, own)| {
            let values = &host[place.host.clone()];
            match place.conv {
                None => own.copy_from_slice(values),
                Some(conv) => conv.each(|from, to| own[to] = values[from]),
            }
        });
        device
    }

    /// The inverse, into the host's flat buffer.
    pub(super) fn to_host(&self, device: &[f32], host: &mut [f32]) {
        let mut rest = host;
        let mut pieces = Vec::with_capacity(self.places.len());
        // Host ranges follow one another without gaps.
        for place in &self.places {
            let (own, tail) = std::mem::take(&mut rest).split_at_mut(place.host.len());
            rest = tail;
            pieces.push((place, own));
        }
        pieces.into_par_iter().for_each(|(place, own)| {
            let values = &device[place.device..place.device + place.len()];
            match place.conv {
                None => own.copy_from_slice(values),
                Some(conv) => conv.each(|to, from| own[to] = values[from]),
            }
        });
    }

    fn in_device_order(&self) -> Vec<&Place> {
        let mut places: Vec<&Place> = self.places.iter().collect();
        places.sort_by_key(|place| place.device);
        places
    }
}

impl Place {
    fn len(&self) -> usize {
        self.conv.map_or(self.host.len(), |conv| conv.n_out * conv.n_taps * conv.n_in_device)
    }
}

impl Conv {
    /// Calls `pair` with every weight's place on the host, [tap][in][out], and on the device, [out][tap][in].
    fn each(self, mut pair: impl FnMut(usize, usize)) {
        for tap in 0..self.n_taps {
            for ci in 0..self.n_in {
                for co in 0..self.n_out {
                    let host = (tap * self.n_in + ci) * self.n_out + co;
                    pair(host, (co * self.n_taps + tap) * self.n_in_device + ci);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::models;
    use crate::nn::{Architecture, Config};

    #[test]
    fn what_goes_to_the_device_comes_back() {
        for architecture in [Architecture::Resnet8, Architecture::Vgg16Bn] {
            let config = Config { architecture, n_classes: 7, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 };
            let graph = models::build(&config).unwrap();
            let host: Vec<f32> = (0..graph.n_parameters()).map(|i| i as f32 + 1.0).collect();
            for vector in [4, 8] {
                let layout = Layout::new(&graph, vector);
                let device = layout.to_device(&host);
                let mut back = vec![0.0; host.len()];
                layout.to_host(&device, &mut back);
                assert!(back == host, "{} {vector}", architecture.name());
                assert_eq!(device.iter().filter(|&&v| v != 0.0).count(), host.len(), "padding is zero");
                // The first convolution: 64 or 16 filters of 3 x 3 x 3.
                let conv = &graph.parameters[0];
                let n_out = conv.shape()[0];
                let (tap, ci, co) = (5, 2, 3);
                let expected = host[conv.range.start + (tap * 3 + ci) * n_out + co];
                assert_eq!(device[layout.start(conv.range.start) + (co * 9 + tap) * vector + ci], expected);
            }
        }
    }

    #[test]
    fn convolutions_come_first_and_tensors_are_aligned() {
        let config =
            Config { architecture: Architecture::Vgg16Bn, n_classes: 7, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 };
        let graph = models::build(&config).unwrap();
        let layout = Layout::new(&graph, 8);
        for tensor in &graph.parameters {
            let start = layout.start(tensor.range.start);
            assert!(start.is_multiple_of(ALIGNMENT));
            assert_eq!(matches!(tensor.role, Role::ConvWeight { .. }), start < layout.n_conv(), "{}", tensor.name);
        }
    }
}
