//! A network as data: a list of nodes in execution order, and the tensors that they read.
//!
//! The graph knows shapes and names and no values. Architectures build it through [`Builder`]; the tape executes it,
//! forwards in order and backwards in reverse. Tensor names are PyTorch's; parameters lie one behind the other in one
//! flat buffer, running statistics in another, convolution weights as [tap][in][out].

use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::kernels::conv::Geometry;
use std::ops::Range;

/// A node's place in [`Graph::nodes`].
pub type NodeId = usize;

/// Rows, columns and channels of a node's output for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Shape {
    /// Values for one image.
    pub fn len(self) -> usize {
        self.height * self.width * self.channels
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Positions of one image.
    pub fn positions(self) -> usize {
        self.height * self.width
    }
}

/// What a node computes. Ranges point into the flat parameters, or into the flat running statistics where said so.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The images.
    Input,
    /// A convolution.
    Conv {
        /// Its shape.
        geometry: Geometry,
        /// [tap][in][out].
        weight: Range<usize>,
        /// [out].
        bias: Option<Range<usize>>,
    },
    /// Batch normalisation, `activation(norm(inputs[0]) + inputs[1])`; the second input is optional.
    BatchNorm {
        /// Scale.
        gamma: Range<usize>,
        /// Shift.
        beta: Range<usize>,
        /// Running mean, in the statistics.
        mean: Range<usize>,
        /// Running variance, in the statistics.
        variance: Range<usize>,
        /// What follows.
        activation: Activation,
    },
    /// max(0, x).
    Relu,
    /// The sum of two inputs.
    Add,
    /// Maxima over 2 x 2 windows, stride 2.
    MaxPool,
    /// The average over all positions.
    AveragePool,
    /// A linear layer on the values of one image.
    Linear {
        /// [out, in].
        weight: Range<usize>,
        /// [out].
        bias: Range<usize>,
    },
    /// `x + N(0, sigma^2)` while noise is on, `x` otherwise.
    Noise {
        /// Standard deviation.
        sigma: f64,
        /// Counts the noise nodes; part of the key of the draws.
        ordinal: u64,
    },
}

/// One step of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// From what; all of them come earlier.
    pub inputs: Vec<NodeId>,
    /// Shape of the output.
    pub shape: Shape,
}

/// What a tensor is for; decides its layout and its first values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Convolution weights, [tap][in][out] here, [out, in, k, k] in PyTorch.
    ConvWeight {
        /// Rows and columns of the window.
        kernel: usize,
        /// Input channels.
        in_channels: usize,
        /// Output channels.
        out_channels: usize,
    },
    /// Linear weights, [out, in].
    LinearWeight {
        /// Inputs.
        n_in: usize,
        /// Outputs.
        n_out: usize,
    },
    /// Bias of a convolution or a linear layer.
    Bias {
        /// Inputs of each of the layer's outputs.
        fan_in: usize,
    },
    /// Batch normalisation's scale.
    NormScale,
    /// Batch normalisation's shift.
    NormShift,
    /// Running mean.
    RunningMean,
    /// Running variance.
    RunningVariance,
}

/// A named tensor in one of the flat buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// PyTorch's name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Where it lies.
    pub range: Range<usize>,
}

impl Tensor {
    /// PyTorch's shape.
    pub fn shape(&self) -> Vec<usize> {
        match self.role {
            Role::ConvWeight { kernel, in_channels, out_channels } => vec![out_channels, in_channels, kernel, kernel],
            Role::LinearWeight { n_in, n_out } => vec![n_out, n_in],
            _ => vec![self.range.len()],
        }
    }
}

/// How convolutions start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvInit {
    /// N(0, 2 / fan_out), He et al. 2015 (arXiv:1502.01852), as torchvision's ResNets do.
    HeFanOut,
    /// U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), what `torch.nn.Conv2d` does by itself.
    TorchDefault,
}

/// A network.
#[derive(Clone, Debug)]
pub struct Graph {
    /// In execution order; the first is the input, the last gives the logits.
    pub nodes: Vec<Node>,
    /// Trained tensors, in the order of the flat buffer.
    pub parameters: Vec<Tensor>,
    /// Running statistics, in the order of their flat buffer.
    pub statistics: Vec<Tensor>,
    /// Layers by name, in order; several names may point to one node.
    pub layers: Vec<(String, NodeId)>,
    /// How convolutions start.
    pub conv_init: ConvInit,
}

impl Graph {
    /// Number of trained values.
    pub fn n_parameters(&self) -> usize {
        self.parameters.last().map_or(0, |tensor| tensor.range.end)
    }

    /// Number of running statistics.
    pub fn n_statistics(&self) -> usize {
        self.statistics.last().map_or(0, |tensor| tensor.range.end)
    }

    /// The node of the layer called `name`.
    ///
    /// # Errors
    /// No such layer; the message lists those that exist.
    pub fn layer(&self, name: &str) -> Result<NodeId> {
        match self.layers.iter().find(|(layer, _)| layer == name) {
            Some(&(_, node)) => Ok(node),
            None => {
                let names: Vec<String> = self.layers.iter().map(|(layer, _)| format!("`{layer}`")).collect();
                Err(Error::user(format!("there is no layer `{name}` in this network"))
                    .hint(format!("its layers are {}", names.join(", "))))
            }
        }
    }
}

/// A convolution to be built.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Output channels.
    pub channels: usize,
    /// Rows and columns of the window; the padding keeps the size at stride 1.
    pub kernel: usize,
    /// Distance between windows.
    pub stride: usize,
}

/// Which of the two noise levels of the information-bottleneck paper a noise node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sigma {
    /// sigma_xt: after the stem and every block.
    Xt,
    /// sigma_ty: between the average pool and the classifier.
    Ty,
}

/// Builds a [`Graph`] node by node.
pub struct Builder {
    graph: Graph,
    sigma_xt: f64,
    sigma_ty: f64,
    n_noises: u64,
}

impl Builder {
    /// Starts with the input node (id 0): images of `size` rows and columns and three channels.
    pub fn new(size: (usize, usize), sigma_xt: f64, sigma_ty: f64, conv_init: ConvInit) -> Builder {
        let shape = Shape { height: size.0, width: size.1, channels: 3 };
        let input = Node { op: Op::Input, inputs: Vec::new(), shape };
        let graph =
            Graph { nodes: vec![input], parameters: Vec::new(), statistics: Vec::new(), layers: Vec::new(), conv_init };
        Builder { graph, sigma_xt, sigma_ty, n_noises: 0 }
    }

    /// The images.
    pub fn input(&self) -> NodeId {
        0
    }

    /// Shape of a node's output.
    pub fn shape(&self, node: NodeId) -> Shape {
        self.graph.nodes[node].shape
    }

    /// A convolution without bias, its weight called `name`.weight.
    pub fn conv(&mut self, x: NodeId, name: &str, conv: Conv) -> NodeId {
        let (geometry, weight) = self.conv_weight(x, name, conv);
        self.push_conv(x, geometry, weight, None)
    }

    /// A convolution with a bias.
    pub fn conv_with_bias(&mut self, x: NodeId, name: &str, conv: Conv) -> NodeId {
        let (geometry, weight) = self.conv_weight(x, name, conv);
        let fan_in = geometry.n_taps() * geometry.in_channels;
        let bias = self.parameter(format!("{name}.bias"), Role::Bias { fan_in }, conv.channels);
        self.push_conv(x, geometry, weight, Some(bias))
    }

    fn conv_weight(&mut self, x: NodeId, name: &str, conv: Conv) -> (Geometry, Range<usize>) {
        let shape = self.shape(x);
        let geometry = Geometry {
            height: shape.height,
            width: shape.width,
            in_channels: shape.channels,
            out_channels: conv.channels,
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.kernel / 2,
        };
        let role = Role::ConvWeight { kernel: conv.kernel, in_channels: shape.channels, out_channels: conv.channels };
        (geometry, self.parameter(format!("{name}.weight"), role, geometry.n_weights()))
    }

    fn push_conv(&mut self, x: NodeId, geometry: Geometry, weight: Range<usize>, bias: Option<Range<usize>>) -> NodeId {
        let shape =
            Shape { height: geometry.out_height(), width: geometry.out_width(), channels: geometry.out_channels };
        self.push(Op::Conv { geometry, weight, bias }, vec![x], shape)
    }

    /// Batch normalisation followed by nothing.
    pub fn norm(&mut self, x: NodeId, name: &str) -> NodeId {
        self.push_norm(vec![x], name, Activation::None)
    }

    /// Batch normalisation and ReLU.
    pub fn norm_relu(&mut self, x: NodeId, name: &str) -> NodeId {
        self.push_norm(vec![x], name, Activation::Relu)
    }

    /// `relu(norm(x) + residual)`.
    pub fn norm_add_relu(&mut self, x: NodeId, residual: NodeId, name: &str) -> NodeId {
        debug_assert!(x != residual && self.shape(x) == self.shape(residual), "{name}");
        self.push_norm(vec![x, residual], name, Activation::Relu)
    }

    fn push_norm(&mut self, inputs: Vec<NodeId>, name: &str, activation: Activation) -> NodeId {
        let shape = self.shape(inputs[0]);
        let op = Op::BatchNorm {
            gamma: self.parameter(format!("{name}.weight"), Role::NormScale, shape.channels),
            beta: self.parameter(format!("{name}.bias"), Role::NormShift, shape.channels),
            mean: self.statistic(format!("{name}.running_mean"), Role::RunningMean, shape.channels),
            variance: self.statistic(format!("{name}.running_var"), Role::RunningVariance, shape.channels),
            activation,
        };
        self.push(op, inputs, shape)
    }

    /// max(0, x).
    pub fn relu(&mut self, x: NodeId) -> NodeId {
        self.push(Op::Relu, vec![x], self.shape(x))
    }

    /// The sum of two nodes of one shape.
    pub fn add(&mut self, a: NodeId, b: NodeId) -> NodeId {
        debug_assert_eq!(self.shape(a), self.shape(b));
        self.push(Op::Add, vec![a, b], self.shape(a))
    }

    /// Maxima over 2 x 2 windows; an odd last row or column is left out. The input has at least two of each.
    pub fn max_pool(&mut self, x: NodeId) -> NodeId {
        let shape = self.shape(x);
        debug_assert!(shape.height >= 2 && shape.width >= 2);
        self.push(Op::MaxPool, vec![x], Shape { height: shape.height / 2, width: shape.width / 2, ..shape })
    }

    /// The average over all positions.
    pub fn average_pool(&mut self, x: NodeId) -> NodeId {
        let shape = Shape { height: 1, width: 1, ..self.shape(x) };
        self.push(Op::AveragePool, vec![x], shape)
    }

    /// A linear layer with bias.
    pub fn linear(&mut self, x: NodeId, name: &str, n_out: usize) -> NodeId {
        let n_in = self.shape(x).len();
        let op = Op::Linear {
            weight: self.parameter(format!("{name}.weight"), Role::LinearWeight { n_in, n_out }, n_in * n_out),
            bias: self.parameter(format!("{name}.bias"), Role::Bias { fan_in: n_in }, n_out),
        };
        self.push(op, vec![x], Shape { height: 1, width: 1, channels: n_out })
    }

    /// Noise of the chosen level; `x` itself where that is 0.
    pub fn noise(&mut self, x: NodeId, sigma: Sigma) -> NodeId {
        let sigma = match sigma {
            Sigma::Xt => self.sigma_xt,
            Sigma::Ty => self.sigma_ty,
        };
        if sigma == 0.0 {
            return x;
        }
        let ordinal = self.n_noises;
        self.n_noises += 1;
        self.push(Op::Noise { sigma, ordinal }, vec![x], self.shape(x))
    }

    /// Lets `name` be observed.
    pub fn layer(&mut self, name: impl Into<String>, node: NodeId) {
        self.graph.layers.push((name.into(), node));
    }

    /// The pool, the noise before the classifier, the classifier called `name`, and their layer names.
    pub fn classifier(mut self, x: NodeId, name: &str, n_classes: usize) -> Graph {
        let pooled = self.average_pool(x);
        self.layer("avgpool", pooled);
        let features = self.noise(pooled, Sigma::Ty);
        let logits = self.linear(features, name, n_classes);
        self.layer("logits", logits);
        self.graph
    }

    fn parameter(&mut self, name: String, role: Role, len: usize) -> Range<usize> {
        let start = self.graph.n_parameters();
        self.graph.parameters.push(Tensor { name, role, range: start..start + len });
        start..start + len
    }

    fn statistic(&mut self, name: String, role: Role, len: usize) -> Range<usize> {
        let start = self.graph.n_statistics();
        self.graph.statistics.push(Tensor { name, role, range: start..start + len });
        start..start + len
    }

    fn push(&mut self, op: Op, inputs: Vec<NodeId>, shape: Shape) -> NodeId {
        self.graph.nodes.push(Node { op, inputs, shape });
        self.graph.nodes.len() - 1
    }
}
