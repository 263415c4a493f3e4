//! The loss about models, on a grid along two random directions, on clean and on triggered images separately.
//!
//! H. Li et al., "Visualizing the Loss Landscape of Neural Nets" (NeurIPS 2018, arXiv:1712.09913), section 4: directions
//! are normalised [filter by filter](crate::nn::filters), so that sharpness can be compared between models. Draws nothing
//! on paper: `plot/landscape` does.
//!
//! Running statistics stay as they are on the way: the loss is a function of the weights alone. All models look along the
//! same draws, each made as long as its own filters.

use super::backdoor::{check_classes, shown};
use super::subset::{self, Chosen, Subset, Who};
use crate::artifact::table::{Cell, Column};
use crate::artifact::{Model, Packed, Table};
use crate::error::{Result, ResultExt};
use crate::kernels::Precision;
use crate::nn::batch_loss::Value;
use crate::nn::{Network, filters, predict};
use crate::param::{Count, Positive, valid};
use crate::stage::{Context, Named, Problem, Resources, Stage};
use crate::stages::train::recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Takes the loss about models on a grid along two random, filter-normalised directions, on clean and on triggered test
/// images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The test images that the loss is taken on.
    pub subsets: Vec<Subset>,
    /// Images of every subset, at most.
    pub n_images: Count,
    /// Points of the grid along each direction; an odd number has the model itself in the middle.
    #[schemars(range(min = 2, max = 1001))]
    pub points: usize,
    /// How far the grid goes to either side; 1 is as far as the filters are long.
    pub reach: Positive,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            subsets: vec![Subset::Clean, Subset::Poisoned],
            n_images: const { valid(Count::new(200)) },
            points: 21,
            reach: const { valid(Positive::new(1.0)) },
        }
    }
}

crate::ports! {
    /// What is looked at, and on what.
    pub struct Inputs {
        /// Models.
        models: Vec<Named<Model>>,
        /// The poisoned dataset; only its test images are used.
        dataset: Packed,
    }
}

/// The stage.
pub struct LossLandscape;

impl Stage for LossLandscape {
    const NAME: &'static str = "evaluate/loss_landscape";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Table;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        subset::problem(&params.subsets).into_iter().collect()
    }

    fn resources(_: &Params) -> Resources {
        recipe::resources(None, predict::BATCH)
    }

    fn run(cx: &Context, params: Params, Inputs { models, dataset }: Inputs) -> Result<Table> {
        let draw = |&subset| Chosen::draw(cx, &dataset, subset, params.n_images);
        let subsets: Vec<Chosen> = params.subsets.iter().map(draw).collect::<Result<_>>()?;
        let who = Who::of(&models);
        let mut columns = who.columns();
        columns.extend([
            Column::new("x", "steps along the first direction").digits(3),
            Column::new("y", "steps along the second direction").digits(3),
            Column::new("loss", "mean cross-entropy").unit("nats").digits(3),
            Column::new("accuracy", "images classified as their label in the subset").unit("%").digits(1),
        ]);
        let mut table = Table::new(columns);
        let total = (models.len() * params.points) as u64;
        let mut headlines = Vec::new();
        for (number, model) in models.iter().enumerate() {
            let doing = || format!("the loss about `{}`", shown(&model.name));
            let (mut network, normalise) = predict::open(&model.value).context(doing())?;
            cx.place.put(&mut network, Precision::F32).context(doing())?;
            check_classes(&model.value, &dataset.about).context(doing())?;
            let mut losses = Vec::new();
            for chosen in &subsets {
                predict::check_size(&network, chosen.split()).context(doing())?;
                losses.push(chosen.loss(&normalise)?);
            }
            let mut worst = vec![0.0f64; subsets.len()];
            let mut done = (number * params.points) as u64;
            grid(cx, &params, &mut network, |network, (x, y)| {
                for ((chosen, loss), worst) in subsets.iter().zip(&losses).zip(&mut worst) {
                    let Value { loss, n_hits } = loss.value(network)?;
                    *worst = worst.max(loss);
                    let mut row = who.cells(model, chosen.subset);
                    let accuracy = 100.0 * n_hits as f64 / chosen.n() as f64;
                    row.extend([x, y, loss, accuracy].map(Cell::from));
                    table.push(row);
                }
                if y == params.reach.get() {
                    done += 1;
                    cx.progress(done, total, "lines", shown(&model.name));
                }
                Ok(())
            })
            .context(doing())?;
            for (chosen, worst) in subsets.iter().zip(worst) {
                headlines.push(format!("{} {} up to {worst:.1} nats", shown(&model.name), chosen.subset.name()));
            }
        }
        cx.headline(headlines.join(", "));
        table.notes = subset::notes(&subsets);
        table.notes.push(
            "directions are random, every filter as long as the network's own; biases and normalisations stay".into(),
        );
        Ok(table)
    }
}

/// Calls `look` with the network at every point of the grid, and leaves it as it was.
fn grid(
    cx: &Context,
    params: &Params,
    network: &mut Network,
    mut look: impl FnMut(&mut Network, (f64, f64)) -> Result<()>,
) -> Result<()> {
    let centre = network.params().to_vec();
    let stream = cx.rng("directions");
    let [along_x, along_y] =
        ["first", "second"].map(|name| filters::direction(network.graph(), &centre, &stream.child(name)));
    let place = |i: usize| {
        // Exact at both ends and in the middle.
        let steps = (2 * i) as f64 - (params.points - 1) as f64;
        params.reach.get() * (steps / (params.points - 1) as f64)
    };
    for x in (0..params.points).map(place) {
        for y in (0..params.points).map(place) {
            cx.check_stop()?;
            let directions = along_x.iter().zip(&along_y);
            for ((target, &at), (&first, &second)) in network.params_mut().iter_mut().zip(&centre).zip(directions) {
                *target = (f64::from(at) + x * f64::from(first) + y * f64::from(second)) as f32;
            }
            look(network, (x, y))?;
        }
    }
    network.params_mut().copy_from_slice(&centre);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::subset::example;
    use super::*;
    use serde_json::json;

    fn run(params: serde_json::Value, scales: &[f32]) -> Table {
        let params: Params = serde_json::from_value(params).unwrap();
        let models = scales.iter().map(|&scale| example::model(scale)).collect();
        let inputs = Inputs { models, dataset: example::dataset(60) };
        LossLandscape::run(&Context::for_test(0, LossLandscape::NAME), params, inputs).unwrap()
    }

    /// What the paper's normalisation is for: two points in weight space, one function, one landscape.
    #[test]
    fn landscapes_do_not_see_scalings() {
        let table = run(json!({ "subsets": ["clean"], "n_images": 20, "points": 5 }), &[1.0, 4.0]);
        let loss = table.column("loss").unwrap();
        let losses: Vec<f64> = table.rows.iter().map(|row| row[loss].number().unwrap()).collect();
        assert_eq!(losses.len(), 50);
        for (one, other) in losses[..25].iter().zip(&losses[25..]) {
            assert!((one - other).abs() < 1e-3 * one.max(1.0), "{one} and {other}");
        }
        let spread = losses.iter().fold(0.0f64, |most, loss| most.max((loss - losses[0]).abs()));
        assert!(spread > 0.05, "the landscape is flat: {losses:?}");
    }

    #[test]
    fn the_model_itself_is_in_the_middle() {
        let table = run(json!({ "n_images": 20, "points": 3, "reach": 0.5 }), &[1.0]);
        let Named { value: model, .. } = example::model(1.0);
        let (mut network, normalise) = predict::open(&model).unwrap();
        let dataset = example::dataset(60);
        let cx = Context::for_test(0, LossLandscape::NAME);
        let column = |name: &str| table.column(name).unwrap();
        let mut n_middle = 0;
        for row in &table.rows {
            let [x, y, loss] = ["x", "y", "loss"].map(|name| row[column(name)].number().unwrap());
            assert!([-0.5, 0.0, 0.5].contains(&x) && [-0.5, 0.0, 0.5].contains(&y));
            if (x, y) == (0.0, 0.0) {
                let clean = row[column("subset")].text() == Some("clean");
                let subset = if clean { Subset::Clean } else { Subset::Poisoned };
                let chosen = Chosen::draw(&cx, &dataset, subset, Count::new(20).unwrap()).unwrap();
                let expected = chosen.loss(&normalise).unwrap().value(&mut network).unwrap().loss;
                assert_eq!(loss, expected);
                n_middle += 1;
            }
        }
        assert_eq!((n_middle, table.rows.len()), (2, 18));
    }

    #[test]
    fn the_network_is_left_as_it_was() {
        let (mut network, _) = predict::open(&example::model(1.0).value).unwrap();
        let before = network.params().to_vec();
        let params = Params { points: 3, ..Params::default() };
        let mut n = 0;
        grid(&Context::for_test(0, "s"), &params, &mut network, |network, (x, y)| {
            n += 1;
            assert_eq!(network.params() == before, (x, y) == (0.0, 0.0));
            Ok(())
        })
        .unwrap();
        assert!(n == 9 && network.params() == before);
    }
}
