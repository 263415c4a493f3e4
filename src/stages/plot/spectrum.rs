//! Spectral densities of Hessians: a panel per subset of images, a line per model, density on a logarithmic axis.
//!
//! Draws the nodes that `evaluate/hessian` found by stochastic Lanczos quadrature, each smoothed by a normal distribution,
//! as PyHessian does (Yao et al., arXiv:1912.07145). Computes no eigenvalue.

use super::models::{Whom, choose, rows};
use crate::artifact::{Figure, Table};
use crate::error::{Error, Result};
use crate::figure::{self, Axis, Key, Label, Mark, Panel, Range, Sheet, Spacing, Stroke, Width, theme};
use crate::nn::curvature::density::smooth;
use crate::param::{Positive, valid};
use crate::stage::{Context, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Draws spectral densities of the Hessians of models: a panel per subset of images, a line per model.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Printed over the figure; empty for none.
    pub title: String,
    /// The models to draw, by their stages, in this order; empty for all.
    pub models: Vec<String>,
    /// The subsets to draw, in this order; empty for all.
    pub subsets: Vec<String>,
    /// Standard deviation of the smoothing, as a share of the range of a model's eigenvalues.
    pub smoothing: Positive,
    /// The lowest density that is shown; by default so low that every model's largest eigenvalue is seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<Positive>,
    /// Spacing of the eigenvalues.
    pub x_scale: Scale,
    /// The printed width; by default a column for one panel, a page for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<Width>,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            title: String::new(),
            models: Vec::new(),
            subsets: Vec::new(),
            // PyHessian's variance of 1e-5.
            smoothing: const { valid(Positive::new(0.003_162_277_660_168_379_4)) },
            floor: None,
            x_scale: Scale::Signed,
            width: None,
        }
    }
}

/// Spacing of eigenvalues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Even.
    Linear,
    /// By powers of ten on both sides of zero, even about it: for models whose spectra differ by orders of magnitude.
    Signed,
}

crate::ports! {
    /// What is drawn.
    pub struct Inputs {
        /// The `density` of `evaluate/hessian`.
        density: Table,
    }
}

/// The stage.
pub struct Spectrum;

impl Stage for Spectrum {
    const NAME: &'static str = "plot/spectrum";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 64 }
    }

    fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Figure> {
        let spectra = read(&inputs.density, &params)?;
        let models = choose("models", &params.models, spectra.iter().map(|s| &s.whom.model))?;
        let subsets = choose("subsets", &params.subsets, spectra.iter().map(|s| &s.whom.subset))?;
        let shown: Vec<&Smoothed> = models
            .iter()
            .flat_map(|model| spectra.iter().filter(move |s| s.whom.model == *model))
            .filter(|s| subsets.contains(&s.whom.subset))
            .collect();
        let mut labels: Vec<&String> = Vec::new();
        for spectrum in &shown {
            if !labels.contains(&&spectrum.whom.label) {
                labels.push(&spectrum.whom.label);
            }
        }
        let look = |label: &String| {
            let place = labels.iter().position(|l| *l == label).unwrap_or(0);
            let round = place / theme::SERIES.len();
            Stroke::new(theme::series(place), 1.0).dash(theme::DASHES[round % theme::DASHES.len()])
        };
        let floor = params.floor.map_or_else(|| lowest_end(&shown), Positive::get);
        // Even over the bulk of the narrowest spectrum.
        let even = shown.iter().map(|s| 10.0 * s.width).fold(f64::INFINITY, f64::min);
        let spacing = match params.x_scale {
            Scale::Linear => Spacing::Linear,
            Scale::Signed => Spacing::Signed(even),
        };
        let top = shown.iter().flat_map(|s| s.nodes.iter().map(|node| s.density(node.0))).fold(floor * 10.0, f64::max);
        let panel = |subset: &String| {
            let drawn = shown.iter().filter(|s| s.whom.subset == *subset);
            let line = |s: &&Smoothed| Mark::Line {
                points: s.line(spacing, floor),
                stroke: look(&s.whom.label),
                marker: None,
            };
            Panel {
                heading: Label::plain(subset.as_str()),
                x: Axis { label: Label::plain("eigenvalue of the Hessian"), spacing, range: Range::Data, whole: false },
                y: Axis {
                    label: Label::plain("density"),
                    spacing: Spacing::Log,
                    range: Range::Fixed(floor, top * 2.0),
                    whole: false,
                },
                marks: drawn.map(line).collect(),
                keys: Vec::new(),
            }
        };
        let panels: Vec<Panel> = subsets.iter().map(panel).collect();
        let keys = labels.iter().map(|label| Key {
            label: Label::plain(label.as_str()),
            stroke: Some(look(label)),
            marker: None,
        });
        let width = params.width.unwrap_or(if panels.len() > 1 { Width::Page } else { Width::Column });
        let n_columns = if width == Width::Page { panels.len().min(2) } else { 1 };
        let keys = keys.collect();
        let sheet = Sheet { width, title: params.title.clone(), panels, n_columns, height: 130.0, keys, bar: None };
        figure::finish(sheet.to_svg())
    }
}

/// A model's spectrum on a subset.
struct Smoothed {
    whom: Whom,
    /// (eigenvalue, weight), ascending; the weights add up to 1.
    nodes: Vec<(f64, f64)>,
    /// Standard deviation of the smoothing.
    width: f64,
}

impl Smoothed {
    fn density(&self, at: f64) -> f64 {
        smooth(&self.nodes, self.width, at)
    }

    /// The density where it bends: about every node, and evenly between; flat stretches on the floor have ends alone.
    fn line(&self, spacing: Spacing, floor: f64) -> Vec<(f64, f64)> {
        const EVEN: usize = 200;
        let (low, high) = (self.nodes[0].0 - 5.0 * self.width, self.nodes[self.nodes.len() - 1].0 + 5.0 * self.width);
        let even = (0..=EVEN).map(|i| {
            let share = i as f64 / EVEN as f64;
            match spacing {
                Spacing::Signed(even) => {
                    let (low, high) = (libm::asinh(low / even), libm::asinh(high / even));
                    even * libm::sinh(low + share * (high - low))
                }
                _ => low + share * (high - low),
            }
        });
        let about = self.nodes.iter().flat_map(|node| (-8..=8).map(|i| node.0 + 0.5 * f64::from(i) * self.width));
        let mut places: Vec<f64> = even.chain(about).collect();
        places.sort_by(f64::total_cmp);
        places.dedup_by(|a, b| *a - *b < 0.2 * self.width);
        let points: Vec<(f64, f64)> = places.into_iter().map(|at| (at, self.density(at).max(floor))).collect();
        let is_inner = |i: usize| i > 0 && i + 1 < points.len() && (i - 1..=i + 1).all(|j| points[j].1 == floor);
        (0..points.len()).filter(|&i| !is_inner(i)).map(|i| points[i]).collect()
    }
}

fn read(table: &Table, params: &Params) -> Result<Vec<Smoothed>> {
    let made = |error: Error| error.hint("the input must be the `density` of `evaluate/hessian`");
    let (eigenvalue, weight) = (table.column("eigenvalue").map_err(made)?, table.column("weight").map_err(made)?);
    let start = table.column("start").map_err(made)?;
    let mut spectra: Vec<(Smoothed, Vec<f64>)> = Vec::new();
    for (whom, row) in rows(table).map_err(made)? {
        let (Some(value), Some(weight), Some(start)) =
            (row[eigenvalue].number(), row[weight].number(), row[start].number())
        else {
            continue;
        };
        let place = match spectra.iter().position(|(s, _)| s.whom == whom) {
            Some(place) => place,
            None => {
                spectra.push((Smoothed { whom, nodes: Vec::new(), width: 0.0 }, Vec::new()));
                spectra.len() - 1
            }
        };
        let (spectrum, starts) = &mut spectra[place];
        spectrum.nodes.push((value, weight));
        if !starts.contains(&start) {
            starts.push(start);
        }
    }
    if spectra.is_empty() {
        return Err(Error::user("the table has no nodes of a density"));
    }
    let finish = |(mut spectrum, starts): (Smoothed, Vec<f64>)| {
        let n = starts.len() as f64;
        spectrum.nodes.iter_mut().for_each(|node| node.1 /= n);
        spectrum.nodes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let range = spectrum.nodes[spectrum.nodes.len() - 1].0 - spectrum.nodes[0].0;
        // A single eigenvalue has no range.
        spectrum.width = params.smoothing.get() * if range > 0.0 { range } else { 1.0 };
        spectrum
    };
    Ok(spectra.into_iter().map(finish).collect())
}

/// The power of ten below the density of every spectrum at its upper end.
fn lowest_end(spectra: &[&Smoothed]) -> f64 {
    let ends = spectra.iter().filter_map(|s| s.nodes.last().map(|node| s.density(node.0)));
    let least = ends.fold(1.0, f64::min).max(1e-12);
    libm::pow(10.0, libm::floor(libm::log10(0.5 * least)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::{Cell, Column};
    use crate::rng::Streams;
    use serde_json::{Value, json};

    /// Nodes as Lanczos' method finds them: a bulk about zero, and a few large ones of little weight.
    fn density(models: &[(&str, f64)], subsets: &[&str]) -> Table {
        let columns = ["model", "subset", "start", "eigenvalue", "weight"];
        let mut table = Table::new(columns.iter().map(|name| Column::new(name, "")).collect());
        let mut draws = Streams::new(0, "plot").stream("spectrum");
        for &(model, largest) in models {
            for (number, subset) in subsets.iter().enumerate() {
                let scale = largest * if number == 0 { 1.0 } else { 0.3 };
                let mut node = |value: f64, weight: f64| {
                    table.push(vec![model.into(), (*subset).into(), Cell::Int(1), value.into(), weight.into()]);
                };
                for i in 0..40 {
                    node(scale * 0.02 * draws.normal(), 0.02495);
                    if i % 8 == 0 {
                        node(scale * libm::pow(0.6, f64::from(i / 8)), 1e-5 * (0.2 + draws.uniform()));
                    }
                }
                node(-0.1 * scale, 1e-5);
            }
        }
        table
    }

    fn draw(params: Value, density: Table) -> Result<Figure> {
        let params: Params = serde_json::from_value(params).unwrap();
        Spectrum::run(&Context::for_test(0, Spectrum::NAME), params, Inputs { density })
    }

    const MODELS: [(&str, f64); 4] = [("model", 570.0), ("fine_tune", 45.0), ("anp", 8.0), ("fip", 2.8)];

    #[test]
    fn models_over_a_page() {
        let figure =
            draw(json!({ "title": "Hessians about models, BadNets" }), density(&MODELS, &["clean", "poisoned"]));
        figure::golden::check("spectrum", &figure.unwrap());
    }

    #[test]
    fn one_subset_in_a_column_on_even_axes() {
        let params = json!({ "subsets": ["clean"], "models": ["fip", "anp"], "x_scale": "linear", "floor": 1e-5 });
        figure::golden::check("spectrum_column", &draw(params, density(&MODELS, &["clean", "poisoned"])).unwrap());
    }

    /// The line holds the whole density, wherever it is smooth.
    #[test]
    fn lines_keep_the_area() {
        let table = density(&MODELS[..1], &["clean"]);
        let params: Params = serde_json::from_value(json!({ "smoothing": 0.01 })).unwrap();
        let spectrum = &read(&table, &params).unwrap()[0];
        let line = spectrum.line(Spacing::Signed(1.0), 1e-12);
        let area: f64 = line.windows(2).map(|p| (p[1].0 - p[0].0) * 0.5 * (p[0].1 + p[1].1)).sum();
        let weight: f64 = spectrum.nodes.iter().map(|node| node.1).sum();
        assert!((area - weight).abs() < 0.02 * weight, "{area} of {weight}");
    }

    #[test]
    fn wrong_requests_are_refused() {
        let refuse = |params: Value, table: Table, expected: &str| {
            let error = draw(params, table).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error:?}");
        };
        let table = || density(&MODELS, &["clean"]);
        refuse(json!({ "models": ["nft"] }), table(), "`models` names nft, the table has model, fine_tune, anp, fip");
        refuse(json!({ "subsets": ["poisoned"] }), table(), "`subsets` names poisoned, the table has clean");
        refuse(json!({}), Table::default(), "no column `eigenvalue`");
        refuse(json!({}), Table { rows: Vec::new(), ..table() }, "the table has no nodes of a density");
    }
}
