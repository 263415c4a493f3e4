//! Representations in the plane: principal components, t-SNE, and how well classes keep apart.
//!
//! Points are f32, row-major [n, width]. [`pca`] rests on [`eigen`]. t-SNE takes three steps, one file each:
//! [`neighbours`] finds the nearest points, [`affinity`] turns their distances into the probabilities of a perplexity,
//! [`tsne`] lays the points out. [`silhouette`] and [`neighbours::preserved`] judge the result. Nothing here knows a
//! stage, and nothing depends on the number of threads (invariant 3).

pub mod affinity;
pub mod eigen;
pub mod neighbours;
pub mod pca;
pub mod silhouette;
pub mod tsne;
