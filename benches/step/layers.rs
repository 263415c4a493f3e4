//! The convolutions of a model one by one: forward, input gradient, weight gradient, each beside the machine's roof.

use crate::measure::peak::{self, Peak};
use crate::{CLASSES, measure::median};
use runner::error::Result;
use runner::kernels::conv::{self, Geometry, Plan};
use runner::kernels::{Isa, Write};
use runner::nn::graph::Op;
use runner::nn::{Architecture, Config, Network};
use runner::rng::Streams;
use std::time::Instant;

/// Seconds of the three passes.
type Passes = [f64; 3];

/// Measures every shape of `architecture` once and prints a line for each, with the number of layers that have it.
///
/// # Errors
/// A model that cannot be built.
pub fn measure(architecture: Architecture, batch: usize, threads: usize) -> Result<()> {
    let isa = Isa::best();
    let config = Config { architecture, n_classes: CLASSES, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 };
    let network = Network::new(&config)?;
    // Shape, whether its input is the images, and how many layers have it.
    let mut shapes: Vec<(Geometry, bool, usize)> = Vec::new();
    for node in &network.graph().nodes {
        let Op::Conv { geometry, .. } = &node.op else { continue };
        let is_first = node.inputs == [0];
        match shapes.iter_mut().find(|(shape, first, _)| shape == geometry && *first == is_first) {
            Some((.., count)) => *count += 1,
            None => shapes.push((*geometry, is_first, 1)),
        }
    }
    let roof = peak::measure(isa, threads)?;
    println!(
        "\n{} at batch {batch}, {threads} thread(s), {}; roof: gemm {:.1} GFLOP/s, multiply-adds {:.1} GFLOP/s",
        architecture.name(),
        isa.name(),
        roof.gemm,
        roof.multiply_adds
    );
    println!(
        "{:<30}{:>4}{:>18}{:>18}{:>18}",
        "GFLOP/s (share of gemm)", "", "forward", "input gradient", "weight gradient"
    );
    let pool = peak::pool(threads)?;
    let mut total: Passes = [0.0; 3];
    let mut done = [0.0; 3];
    for (shape, is_first, count) in shapes {
        let seconds = pool.install(|| passes(isa, shape, batch))?;
        let flops = shape.flops() * batch as f64;
        let mut line = format!(
            "{:<30}{:>4}",
            format!(
                "{k}x{k}/{} {}>{} {}x{}",
                shape.stride,
                shape.in_channels,
                shape.out_channels,
                shape.height,
                shape.width,
                k = shape.kernel
            ),
            format!("x{count}")
        );
        for (pass, seconds) in seconds.into_iter().enumerate() {
            // Nobody asks for the gradient on the images.
            if pass == 1 && is_first {
                line.push_str(&format!("{:>18}", "-"));
                continue;
            }
            total[pass] += seconds * count as f64;
            done[pass] += flops * count as f64;
            line.push_str(&cell(flops / seconds, &roof));
        }
        println!("{line}");
    }
    let all: String = (0..3).map(|pass| cell(done[pass] / total[pass], &roof)).collect();
    println!("{:<34}{all}", "all convolutions");
    let [forward, input, weight] = total.map(|seconds| seconds * 1e3);
    println!("{:<34}{forward:>15.1} ms{input:>15.1} ms{weight:>15.1} ms", "time");
    Ok(())
}

fn cell(flops_per_second: f64, roof: &Peak) -> String {
    let gflops = flops_per_second * 1e-9;
    format!("{:>18}", format!("{gflops:.1} ({:.0} %)", 100.0 * gflops / roof.gemm))
}

/// Seconds of each pass, the packing of weights included: the median over rounds of at least 50 ms.
fn passes(isa: Isa, shape: Geometry, batch: usize) -> Result<Passes> {
    const ROUNDS: usize = 5;
    let stream = Streams::new(0, "bench").stream("layers");
    let values = |name: &str, n: usize| stream.child(name).normals(n, 1.0);
    let n_in = batch * shape.height * shape.width * shape.in_channels;
    let n_out = batch * shape.out_height() * shape.out_width() * shape.out_channels;
    let (x, w, dy) = (values("x", n_in), values("w", shape.n_weights()), values("dy", n_out));
    let (mut y, mut dx, mut dw) = (vec![0.0; n_out], vec![0.0; n_in], vec![0.0; w.len()]);
    let plan = Plan::new(isa, shape, batch);
    let (mut forwards, mut backwards) = (Vec::new(), Vec::new());
    let timed = |step: &mut dyn FnMut()| -> Result<f64> {
        step();
        let start = Instant::now();
        step();
        let repeats = (0.05 / start.elapsed().as_secs_f64()).ceil().clamp(1.0, 1000.0) as usize;
        let rounds = (0..ROUNDS).map(|_| {
            let start = Instant::now();
            (0..repeats).for_each(|_| step());
            start.elapsed().as_secs_f64() / repeats as f64
        });
        median(rounds.collect())
    };
    Ok([
        timed(&mut || {
            conv::pack_forward(&plan, &w, None, &mut forwards);
            conv::forward(&plan, batch, &x, &conv::Filter { weights: &w, bias: None, packed: &forwards }, &mut y);
        })?,
        timed(&mut || {
            conv::pack_backward(&plan, &w, &mut backwards);
            let filter = conv::Filter { weights: &w, bias: None, packed: &backwards };
            conv::backward_input(&plan, batch, &dy, &filter, Write::Replace, &mut dx);
        })?,
        timed(&mut || conv::backward_weights(&plan, batch, &x, &dy, &mut dw))?,
    ])
}
