//! The curvature of the loss about models: the largest eigenvalues, the trace and the density of the spectrum of its
//! Hessian, on clean and on triggered images separately.
//!
//! FIP (Karim et al., "Fisher Information guided Purification against Backdoor Attacks") holds that backdoored models sit
//! in sharper minima than purified ones, and measures it with PyHessian (Yao et al., arXiv:1912.07145): one batch, in
//! evaluation mode. Here, with products of the Hessian by [central differences](crate::nn::hvp) with the
//! [gates](crate::nn::gates) of the model held, which are those of double backward: eigenvalues by Lanczos'
//! method or by power iteration, the trace by Hutchinson's, the density by stochastic Lanczos quadrature
//! ([`crate::nn::curvature`]).
//!
//! Curvature per se says little: scaling a layer up and the next one down changes it, and not the function (Dinh et al.
//! 2017). Relative curvature is that of the loss in the weights' own units, of `D H D` with D = diag |w|: it stays what it
//! is under such scalings, its largest eigenvalue is the worst case of adaptive sharpness to second order (Kwon et al.
//! 2021, arXiv:2102.11600), its trace the average case (Andriushchenko et al. 2023, arXiv:2302.07011).
//!
//! Differs from the paper's code: it takes the Hessian on clean images only, and weights the quadrature by all components
//! of its vectors.

use super::backdoor::{check_classes, shown};
use super::subset::{self, Chosen, Subset, Who};
use crate::artifact::table::{Cell, Column};
use crate::artifact::{Model, Packed, Table};
use crate::error::{Result, ResultExt};
use crate::kernels::{Isa, Precision, basis, l2};
use crate::nn::batch_loss::{BatchLoss, Value};
use crate::nn::curvature::hutchinson::{self, Estimate};
use crate::nn::curvature::{density, power};
use crate::nn::hvp::HessianProduct;
use crate::nn::{Network, predict};
use crate::param::{Count, Positive, valid};
use crate::stage::{Context, Named, Problem, Resources, Stage};
use crate::stages::train::recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Measures the curvature of the loss about models, on clean and on triggered test images: largest eigenvalues, trace and
/// spectral density of the Hessian, and the same relative to the weights.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The test images that the loss is taken on; a row each.
    pub subsets: Vec<Subset>,
    /// Images of every subset, at most.
    pub n_images: Count,
    /// How the largest eigenvalues are found.
    pub method: Method,
    /// How many of them.
    #[schemars(range(min = 1, max = 100))]
    pub top: usize,
    /// Products of a Lanczos run; the nodes of the density. Every step keeps a vector as long as the weights.
    pub lanczos_steps: Count,
    /// Lanczos runs that the density is the mean of; the first one has the eigenvalues.
    pub lanczos_starts: Count,
    /// Products of a power iteration, at most, for every eigenvalue.
    pub power_steps: Count,
    /// A power iteration ends when the eigenvalue changes by less than this share.
    pub tolerance: Positive,
    /// Random vectors for the trace; 0 for no trace.
    #[schemars(range(max = 1_000_000))]
    pub probes: usize,
    /// Whether to measure relative curvature too, at the same number of products.
    pub relative: bool,
    /// Step of the central differences, as a share of the weights' length.
    pub step: Positive,
}

impl Default for Params {
    /// PyHessian's, as the paper's code calls it.
    fn default() -> Params {
        const HUNDRED: Count = valid(Count::new(100));
        Params {
            subsets: vec![Subset::Clean, Subset::Poisoned],
            n_images: const { valid(Count::new(200)) },
            method: Method::Lanczos,
            top: 5,
            lanczos_steps: HUNDRED,
            lanczos_starts: Count::ONE,
            power_steps: HUNDRED,
            tolerance: const { valid(Positive::new(1e-3)) },
            probes: 100,
            relative: true,
            step: const { valid(Positive::new(1e-4)) },
        }
    }
}

/// How eigenvalues are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Lanczos' method: the largest, all from the products that the density takes anyway.
    Lanczos,
    /// Power iteration with deflation: the largest in magnitude, negative ones included.
    Power,
}

crate::ports! {
    /// What is measured, and on what.
    pub struct Inputs {
        /// Models.
        models: Vec<Named<Model>>,
        /// The poisoned dataset; only its test images are used.
        dataset: Packed,
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// A row per model and subset.
        curvature: Table,
        /// The largest eigenvalues.
        eigenvalues: Table,
        /// Nodes and weights of the spectral density.
        density: Table,
    }
}

/// The stage.
pub struct Hessian;

impl Stage for Hessian {
    const NAME: &'static str = "evaluate/hessian";
    const VERSION: u32 = 2;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems: Vec<Problem> = subset::problem(&params.subsets).into_iter().collect();
        let steps = params.lanczos_steps.get();
        if params.method == Method::Lanczos && params.top > steps {
            let message = format!("{steps} steps find {steps} eigenvalues at most, and {} are asked for", params.top);
            let hint = Some("take ten times as many steps as eigenvalues, or more".into());
            problems.push(Problem { parameter: "lanczos_steps", message, hint });
        }
        problems
    }

    fn resources(params: &Params) -> Resources {
        let of_training = recipe::resources(None, predict::BATCH);
        // The Lanczos basis of a network of ResNet-18's size.
        let basis = (4 * 12_000_000 * params.lanczos_steps.get() as u64) >> 20;
        Resources { memory_mib: of_training.memory_mib + basis, ..of_training }
    }

    fn run(cx: &Context, params: Params, Inputs { models, dataset }: Inputs) -> Result<Outputs> {
        let draw = |&subset| Chosen::draw(cx, &dataset, subset, params.n_images);
        let subsets: Vec<Chosen> = params.subsets.iter().map(draw).collect::<Result<_>>()?;
        let who = Who::of(&models);
        let mut outputs = tables(&who, &params, &subsets);
        let (mut headlines, mut done) = (Vec::new(), 0);
        let total = models.len() * subsets.len();
        for model in &models {
            let doing = || format!("the curvature about `{}`", shown(&model.name));
            let (mut network, normalise) = predict::open(&model.value).context(doing())?;
            cx.place.put(&mut network, Precision::F32).context(doing())?;
            check_classes(&model.value, &dataset.about).context(doing())?;
            for chosen in &subsets {
                let mut batch = chosen.loss(&normalise)?;
                predict::check_size(&network, chosen.split()).context(doing())?;
                let found = measure(cx, &params, &mut network, &mut batch).context(doing())?;
                let row = who.cells(model, chosen.subset);
                let line = format!("{} {} {}", shown(&model.name), chosen.subset.name(), found.headline());
                done += 1;
                cx.progress(done as u64, total as u64, "batches", line.clone());
                headlines.push(line);
                found.tell(&row, batch.n(), &mut outputs);
            }
        }
        cx.headline(headlines.join(", "));
        Ok(outputs)
    }
}

/// What was found of a model on a batch.
struct Found {
    value: Value,
    n_images: usize,
    gradient_length: f64,
    weight_length: f64,
    /// Eigenvalue and residual, the largest first.
    eigenvalues: Vec<(f64, f64)>,
    /// The smallest Ritz value.
    least: f64,
    /// Relative change of the first eigenvalue when the step of the differences is halved.
    step_error: f64,
    trace: Option<Estimate>,
    relative: Option<(f64, Option<Estimate>)>,
    /// Per start, value and weight.
    nodes: Vec<Vec<(f64, f64)>>,
    n_products: u64,
}

/// Products with the Hessian of a batch's loss.
struct Products<'a> {
    cx: &'a Context,
    network: &'a mut Network,
    batch: &'a mut BatchLoss,
    differences: HessianProduct,
    /// |w|, where the curvature is relative.
    scale: Option<Vec<f32>>,
    scaled: Vec<f32>,
    n_products: u64,
}

impl Products<'_> {
    /// `target = H vector`, or `D H D vector`.
    fn multiply(&mut self, vector: &[f32], target: &mut [f32]) -> Result<()> {
        self.cx.check_stop()?;
        self.n_products += 1;
        let Products { network, batch, differences, scaled, .. } = self;
        let gradient = |network: &mut Network| batch.gradient(network).map(drop);
        let Some(scale) = &self.scale else {
            return differences.of_network(network, vector, target, gradient);
        };
        scaled.clear();
        scaled.extend(vector.iter().zip(scale).map(|(v, d)| v * d));
        differences.of_network(network, scaled, target, gradient)?;
        target.iter_mut().zip(scale).for_each(|(t, d)| *t *= d);
        Ok(())
    }

    /// v'Hv.
    fn along(&mut self, vector: &[f32]) -> Result<f64> {
        let mut target = vec![0.0; vector.len()];
        self.multiply(vector, &mut target)?;
        Ok(basis::dot(Isa::best(), vector, &target))
    }
}

/// Every model and subset draws the same vectors, so that differences between them are not those of the draws.
fn measure(cx: &Context, params: &Params, network: &mut Network, batch: &mut BatchLoss) -> Result<Found> {
    let (n, isa) = (network.n_parameters(), Isa::best());
    let value = batch.gradient(network)?;
    batch.hold(network)?;
    let (gradient_length, weight_length) = (l2::length(isa, network.grads()), l2::length(isa, network.params()));
    let magnitudes: Vec<f32> = network.params().iter().map(|w| w.abs()).collect();
    let step = params.step.get();
    let mut products = Products {
        cx,
        network,
        batch,
        differences: HessianProduct::with_step(step),
        scale: None,
        scaled: Vec::new(),
        n_products: 0,
    };
    let n_images = products.batch.n();
    let n_steps = params.lanczos_steps.get();
    let starts = (params.lanczos_starts.get(), n_steps);
    let runs = density::runs(&mut |v, target| products.multiply(v, target), n, starts, &cx.rng("lanczos"))?;
    let first = &runs[0];
    let (eigenvalues, leading) = match params.method {
        Method::Lanczos => {
            let n_found = params.top.min(first.values().len());
            ((0..n_found).map(|i| (first.values()[i], first.residual(i))).collect(), first.vector(0)?)
        }
        Method::Power => {
            let settings = power::Settings { most_steps: params.power_steps.get(), tolerance: params.tolerance.get() };
            let mut product = |v: &[f32], target: &mut [f32]| products.multiply(v, target);
            let pairs = power::largest(&mut product, n, params.top, settings, &cx.rng("power"))?;
            let leading = pairs.first().map(|pair| pair.vector.clone()).unwrap_or_default();
            (pairs.iter().map(|pair| (pair.value, pair.residual)).collect::<Vec<_>>(), leading)
        }
    };
    let whole = products.along(&leading)?;
    products.differences = HessianProduct::with_step(0.5 * step);
    let step_error = (products.along(&leading)? - whole).abs() / whole.abs();
    products.differences = HessianProduct::with_step(step);
    let least = first.values().last().copied().unwrap_or(f64::NAN);
    let trace = |products: &mut Products| match params.probes {
        0 => Ok(None),
        probes => {
            hutchinson::trace(&mut |v, target| products.multiply(v, target), n, probes, &cx.rng("trace")).map(Some)
        }
    };
    let plain = trace(&mut products)?;
    let relative = if params.relative {
        products.scale = Some(magnitudes);
        let run = density::runs(&mut |v, target| products.multiply(v, target), n, (1, n_steps), &cx.rng("lanczos"))?;
        Some((run[0].values()[0], trace(&mut products)?))
    } else {
        None
    };
    let nodes = runs.iter().map(|run| run.values().iter().copied().zip(run.weights()).collect()).collect();
    let n_products = products.n_products;
    let trace = plain;
    Ok(Found {
        value,
        n_images,
        gradient_length,
        weight_length,
        eigenvalues,
        least,
        step_error,
        trace,
        relative,
        nodes,
        n_products,
    })
}

impl Found {
    fn headline(&self) -> String {
        let largest = self.eigenvalues.first().map_or(f64::NAN, |pair| pair.0);
        let trace = self.trace.map_or(String::new(), |trace| format!(" Tr {:.0}", trace.mean));
        format!("λ {largest:.1}{trace}")
    }

    /// Adds what was found to the tables, with the cells `who` in front.
    fn tell(&self, who: &[Cell], n: usize, outputs: &mut Outputs) {
        let row = |cells: Vec<Cell>| -> Vec<Cell> { who.iter().cloned().chain(cells).collect() };
        let largest = self.eigenvalues.first();
        let (relative, relative_trace) = self.relative.unzip();
        let relative_trace = relative_trace.flatten();
        outputs.curvature.push(row(vec![
            n.into(),
            self.value.loss.into(),
            (100.0 * self.value.n_hits as f64 / self.n_images as f64).into(),
            largest.map(|pair| pair.0).into(),
            largest.map(|pair| pair.1).into(),
            self.least.into(),
            self.trace.map(|trace| trace.mean).into(),
            self.trace.and_then(|trace| trace.error).into(),
            relative.into(),
            relative_trace.map(|trace| trace.mean).into(),
            relative_trace.and_then(|trace| trace.error).into(),
            (100.0 * self.step_error).into(),
            self.gradient_length.into(),
            self.weight_length.into(),
            (self.n_products as i64).into(),
        ]));
        for (rank, &(value, residual)) in self.eigenvalues.iter().enumerate() {
            outputs.eigenvalues.push(row(vec![(rank + 1).into(), value.into(), residual.into()]));
        }
        for (start, nodes) in self.nodes.iter().enumerate() {
            for &(value, weight) in nodes {
                outputs.density.push(row(vec![(start + 1).into(), value.into(), weight.into()]));
            }
        }
    }
}

fn tables(who: &Who, params: &Params, subsets: &[Chosen]) -> Outputs {
    let number = |name: &str, definition: &str| Column::new(name, definition).digits(3);
    let method = match params.method {
        Method::Lanczos => format!("Lanczos' method, {} steps", params.lanczos_steps.get()),
        Method::Power => format!(
            "power iteration with deflation, at most {} steps, tolerance {}: the largest in magnitude",
            params.power_steps.get(),
            params.tolerance.get()
        ),
    };
    let residual = "|Hv - value v| for its unit vector v: an eigenvalue lies no farther from it";
    let table = |columns: Vec<Column>| Table::new(who.columns().into_iter().chain(columns).collect());
    let mut curvature = table(vec![
        Column::new("n_images", "images in the loss").hidden(),
        number("loss", "mean cross-entropy").unit("nats"),
        Column::new("accuracy", "images classified as their label in the subset").unit("%").digits(1),
        number("lambda_max", "largest eigenvalue of the Hessian"),
        number("lambda_max_residual", residual).hidden(),
        number("lambda_min", "smallest eigenvalue that Lanczos' method found"),
        number("trace", "trace of the Hessian, mean over random signs"),
        number("trace_error", "its standard error"),
        number("relative_lambda_max", "largest eigenvalue of D H D, D = diag |w|: adaptive sharpness, worst case"),
        number("relative_trace", "trace of D H D: adaptive sharpness, average case"),
        number("relative_trace_error", "its standard error").hidden(),
        number("step_error", "change of lambda_max along its vector when the step of the differences is halved")
            .unit("%")
            .hidden(),
        number("gradient_length", "length of the loss's gradient").hidden(),
        number("weight_length", "length of the parameters").hidden(),
        Column::new("n_products", "products with the Hessian, two gradients each").hidden(),
    ]);
    curvature.notes = subset::notes(subsets);
    curvature.notes.push(format!(
        "products with the Hessian are central differences of gradients, their step {} of the weights' length",
        params.step.get()
    ));
    curvature.notes.push(format!("lambda_max: {method}; traces: {} probes", params.probes));
    let eigenvalues = table(vec![
        Column::new("rank", &format!("1 for the first; {method}")),
        number("eigenvalue", "of the Hessian"),
        number("residual", residual),
    ]);
    let density = table(vec![
        Column::new("start", "number of the Lanczos run"),
        number("eigenvalue", "node of the quadrature: a Ritz value"),
        number("weight", "share of the spectrum that the node stands for; a run's add up to 1"),
    ]);
    Outputs { curvature, eigenvalues, density }
}

#[cfg(test)]
mod tests {
    use super::super::subset::example;
    use super::*;
    use serde_json::{Value as Json, json};

    fn run(params: Json, scales: &[f32]) -> Outputs {
        let params: Params = serde_json::from_value(params).unwrap();
        let models = scales.iter().map(|&scale| example::model(scale)).collect();
        let inputs = Inputs { models, dataset: example::dataset(60) };
        Hessian::run(&Context::for_test(0, Hessian::NAME), params, inputs).unwrap()
    }

    fn column(table: &Table, name: &str) -> Vec<f64> {
        let at = table.column(name).unwrap();
        table.rows.iter().map(|row| row[at].number().unwrap()).collect()
    }

    /// Two points in weight space, one function: curvature differs, relative curvature does not.
    #[test]
    fn relative_curvature_does_not_see_scalings() {
        let params = json!({ "subsets": ["clean"], "n_images": 20, "lanczos_steps": 30, "probes": 6 });
        let Outputs { curvature, .. } = run(params, &[1.0, 4.0]);
        let of = |name: &str| {
            let values = column(&curvature, name);
            values[1] / values[0]
        };
        assert!((of("loss") - 1.0).abs() < 1e-4);
        for name in ["relative_lambda_max", "relative_trace"] {
            assert!((of(name) - 1.0).abs() < 0.02, "{name} is {} times as large", of(name));
        }
        assert!((of("trace") - 1.0).abs() > 0.05, "the trace is {} times as large", of("trace"));
    }

    #[test]
    fn both_methods_find_the_largest_eigenvalue() {
        let params = |method: &str| {
            json!({ "method": method, "subsets": ["clean"], "n_images": 20, "top": 1, "lanczos_steps": 30, "probes": 0,
                "power_steps": 200, "tolerance": 1e-5, "relative": false })
        };
        let (lanczos, power) = (run(params("lanczos"), &[1.0]).curvature, run(params("power"), &[1.0]).curvature);
        let (found, expected) = (column(&power, "lambda_max")[0], column(&lanczos, "lambda_max")[0]);
        assert!(expected > 0.0 && (found / expected - 1.0).abs() < 0.01, "{found} by power iteration, {expected}");
        for table in [lanczos, power] {
            assert!(column(&table, "step_error")[0] < 0.1, "percent: {:?}", column(&table, "step_error"));
        }
    }

    #[test]
    fn rows_are_about_models_and_subsets() {
        let params = json!({ "subsets": ["clean", "poisoned", "robust"], "n_images": 10, "top": 2, "lanczos_steps": 5,
            "probes": 0, "relative": false, "lanczos_starts": 2 });
        let Outputs { curvature, eigenvalues, density } = run(params, &[1.0]);
        assert_eq!((curvature.rows.len(), eigenvalues.rows.len(), density.rows.len()), (3, 6, 3 * 2 * 5));
        assert!(column(&curvature, "step_error").iter().all(|&error| error.is_finite() && error >= 0.0));
        let total: f64 = column(&density, "weight").iter().sum();
        assert!((total - 6.0).abs() < 1e-6, "six runs, whose weights add up to {total}");
        let trace = curvature.column("trace").unwrap();
        assert!(curvature.rows.iter().all(|row| row[trace] == Cell::None));
    }

    #[test]
    fn parameters_that_contradict_each_other() {
        let problems = |params: Json| Hessian::check(&serde_json::from_value(params).unwrap()).len();
        assert_eq!(problems(json!({})), 0);
        assert_eq!(problems(json!({ "top": 30, "lanczos_steps": 20 })), 1);
        assert_eq!(problems(json!({ "top": 30, "lanczos_steps": 20, "method": "power", "subsets": [] })), 1);
    }
}
